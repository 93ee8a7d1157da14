"""The suite `public`: HarmBench, JailbreakBench with its benign goals, XSTest, StrongREJECT.

    heredity probes get public              fetch the published files into the store
    heredity probes get public --from DIR   take your own copies instead

Promises: a file is the published one by its SHA-256, or a copy of the user's that is pinned when it is taken.
Any other bytes in their place are refused. An absent file is listed as absent.
Leaves to others: fetching (cli/probes.py), and the columns of each set (importers/).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import UsageError, WrongHash
from heredity.core.files import default_root, hash_file, write_atomic
from heredity.core.readers import json_of
from heredity.core.records import Probe, Record
from heredity.redteam.probes.importers import ImportSpec, read_import

GET = "heredity probes get public"
_PINS, _HALF = "pins.json", ("jailbreakbench", "benign")  # a half with a file of its own
_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_RAW = "https://raw.githubusercontent.com"
_JBB = (
    "https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors/resolve/"
    "886acc352a31533ffbcf4ef22c744658688086fc/data"
)


class PublishedFile(NamedTuple):
    """A published file at one commit. n: its requests that are asked. It may have any ending of a table."""

    name: str  # of our copy, as far as a "-" that of the set
    url: str
    sha256: str
    n: int
    licence: str
    paper: str  # on arXiv


FILES = (
    PublishedFile(
        "harmbench",
        f"{_RAW}/centerforaisafety/HarmBench/8e1604d1171fe8a48d8febecd22f600e462bdcdd/data/behavior_datasets/"
        "harmbench_behaviors_text_all.csv",
        "8d81accedd38eaaf8b760618622bb888417d1fd0c86eba65c427a16f1cbb4afc", 300, "MIT", "2402.04249",
    ),
    PublishedFile(
        "jailbreakbench", f"{_JBB}/harmful-behaviors.csv",
        "4a8ec6832056b631eb092dccc60d37a61c3d441268268888b3d006288afeffa1", 100, "MIT", "2404.01318",
    ),
    PublishedFile(
        "jailbreakbench-benign", f"{_JBB}/benign-behaviors.csv",
        "3cda234d21a991fa309bbfea4b6d9dae31ccdf8e9d452424b6a983e4fdc33468", 100, "MIT", "2404.01318",
    ),
    PublishedFile(
        "xstest", f"{_RAW}/paul-rottger/xstest/d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d/xstest_prompts.csv",
        "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a", 450, "CC-BY-4.0",
        "2308.01263",
    ),
    PublishedFile(
        "strongreject",
        f"{_RAW}/alexandrasouly/strongreject/f7cad6c17e624e21d8df2278e918ae1dddb4cb56/strongreject_dataset/"
        "strongreject_dataset.csv",
        "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381", 313, "MIT", "2402.10260",
    ),
)  # fmt: skip


NAMES = ", ".join(f"{file.name}.csv" for file in FILES)


class PublicFile(Record, frozen=True):
    """A file of the public sets as a plan records it: `n` requests of it are asked. Absent: no hash."""

    name: str
    n: int
    n_published: int
    sha256: str
    is_published: bool

    @property
    def technique(self) -> str:
        """The set."""
        return self.name.partition("-")[0]

    def __str__(self) -> str:
        return f"{self.name} {self.sha256[:8] or 'absent'}"


def folder() -> Path:
    """The folder of the sets in the store."""
    return default_root() / "public"


def copies(at: Path) -> dict[PublishedFile, Path]:
    """The files of a folder that are named as one of the sets. Raises UsageError for two of one set."""
    known = {name: file for file in FILES for name in (file.name, Path(file.url).stem)}
    by_file: dict[PublishedFile, Path] = {}
    for path in sorted(at.glob("*")):
        is_one = path.suffix.casefold() in _ENDINGS and path.is_file()
        file = known.get(path.stem.casefold()) if is_one else None
        if file is not None and (other := by_file.setdefault(file, path)) is not path:
            raise UsageError(f"{at} has two copies of {file.name}: {other.name} and {path.name}.")
    return by_file


def take(file: PublishedFile, path: Path) -> None:
    """Put a copy of a set's file into the store in place of an earlier one, and pin its hash."""
    data, pins = path.read_bytes(), _pins() | {file.name: hash_file(path)}
    if earlier := copies(folder()).get(file):
        earlier.unlink()
    folder().mkdir(parents=True, exist_ok=True)
    write_atomic(folder() / f"{file.name}{path.suffix.casefold()}", data)
    write_atomic(folder() / _PINS, msgspec.json.format(msgspec.json.encode(pins)) + b"\n")


def load() -> tuple[tuple[Probe, ...], tuple[PublicFile, ...]]:
    """The probes of the sets in the store, and every file of all four sets.

    Raises UsageError without any set, WrongHash for a file that was changed.
    """
    pins, there = _pins(), copies(folder())
    if not there:
        raise UsageError(
            f"None of the public sets is in {folder()}. Fetch them: {GET}. Or take copies named {NAMES}: "
            f"{GET} --from DIR"
        )
    by_set: dict[str, list[Path]] = {}
    hashes = {file.name: hash_file(path) for file, path in there.items()}
    for file, path in sorted(there.items()):
        if hashes[file.name] not in (file.sha256, pins.get(file.name)):
            raise WrongHash(
                f"{path} is neither the published file nor the copy that was taken. Take it: {GET} --from DIR"
            )
        by_set.setdefault(file.name.partition("-")[0], []).append(path)
    specs = (ImportSpec(name, paths[0], {}, tuple(paths[1:])) for name, paths in by_set.items())
    probes = tuple(probe for spec in specs for probe in read_import(spec).probes)
    n = Counter(p.technique + "-benign" * ((p.technique, p.kind) == _HALF) for p in probes)
    described = ((file, hashes.get(file.name, "")) for file in FILES)
    return probes, tuple(PublicFile(f.name, n[f.name], f.n, its, its == f.sha256) for f, its in described)


def _pins() -> dict[str, str]:
    return json_of(path) if (path := folder() / _PINS).exists() else {}
