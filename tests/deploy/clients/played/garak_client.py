"""garak: its command with a probe and a detector that need no other model."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from play import GIVEN, play

FOLDER = Path(tempfile.mkdtemp())


def scan(address: str, model: str) -> dict[str, object]:
    """Scan a server. The report's path, how many attempts it has, and the settings that were ignored."""
    options = {"openai": {"OpenAICompatible": {"uri": f"{address}/", "max_tokens": 24}}}
    prefix = FOLDER / re.sub(r"\W", "-", address)
    home = Path(f"{prefix}.home")  # of its log
    command = [
        sys.executable, "-m", "garak", "--target_type", "openai.OpenAICompatible",
        "--target_name", model, "--generator_options", json.dumps(options), "--probes", "test.Test",
        "--detectors", "always.Pass", "--generations", "1", "--report_prefix", str(prefix),
    ]  # fmt: skip
    environment = os.environ | {"OPENAICOMPATIBLE_API_KEY": "none", "OPENAI_LOG": "debug"}
    environment |= {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    report = Path(f"{prefix}.report.jsonl")
    if not report.is_file():
        raise RuntimeError(f"{done.returncode}: {done.stdout[-1500:]} {done.stderr[-1500:]}")
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    attempts = [row for row in rows if row["entry_type"] == "attempt" and row["status"] == 2]
    logged = done.stderr + "".join(each.read_text() for each in home.rglob("garak.log"))
    ignored = re.findall(rf"{GIVEN['header']}['\"]?\)?[:,] *b?['\"]([\w,]+)", logged)
    texts = [output["text"] for row in attempts for output in row["outputs"] if output]
    return {"report": str(report), "n": len(attempts), "texts": texts, "ignored": sorted(set(ignored))}


def alone() -> dict[str, object]:
    return scan(GIVEN["address"], GIVEN["model"])


def in_application() -> dict[str, object]:
    return scan(GIVEN["ignoring_address"], GIVEN["agent"])


def refused() -> dict[str, object]:
    return scan(GIVEN["held_address"], GIVEN["agent"])


play(alone, in_application, refused)
