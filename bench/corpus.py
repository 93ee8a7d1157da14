"""Megabytes per second that one core reads and cleans: each step, and all steps that compare no documents.

    python bench/corpus.py FOLDER...     folders or files of text; cut into documents of a few kilobytes

It measures CPU seconds of this process, shows all rounds, and takes the best. The target is 20 MB/s for the
steps that compare no documents, from JSON lines on disk, hashed. CPU seconds grow if other processes share
the core's caches. So it also prints the load, and the speed of Python's str.split on the same text.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from _worker import result_of
from heredity.core.records import encode
from heredity.corpus.jobs import StepRun
from heredity.corpus.sources.jsonl import JsonlSource
from heredity.corpus.steps import Context, CorpusStep, Duplicates
from heredity.corpus.text import TextBatch, batches
from heredity.lab.corpus import unseen

ALONE = (
    "normalise", "language", "gopher_quality_filter", "gopher_repetition_filter", "c4_quality_filter",
    "fineweb_quality_filter", "scrub", "decontaminate",
)  # fmt: skip
TOGETHER = ("exact_duplicates", "near_duplicates")
TARGET = 20.0
DOCUMENT = 4000  # bytes, about: what a web page has


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--megabytes", type=float, default=24, help="of text, at most")
    parser.add_argument("--datatrove", metavar="PYTHON", help="an interpreter that has datatrove and spacy")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    files = list(chosen(given.folders, given.megabytes * 1e6))
    documents = [part for path in files for part in cut(path.read_bytes())]
    if not documents:
        raise SystemExit("No text in these folders: files of .txt, .md, .html or .rst are read.")
    n_bytes = sum(map(len, documents))
    print(f"{platform.processor() or platform.machine()}, {cpu()}, Python {platform.python_version()}")
    print("load", *(f"{each:.1f}" for each in os.getloadavg()))
    print(f"{len(files):,} files, {len(documents):,} documents, {n_bytes / 1e6:.1f} MB")
    made = list(batches(documents))
    for name in ALONE:
        show(name, n_bytes, given.rounds, lambda name=name: passed(made, [step(name)]))
    for name in TOGETHER:
        show(name + " (keys)", n_bytes, given.rounds, lambda name=name: keyed(made, step(name)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.jsonl"
        path.write_bytes(b"".join(encode({"text": each.decode()}) + b"\n" for each in documents))
        best = show("JSON lines to clean text", n_bytes, given.rounds, lambda: whole(path))
        if given.datatrove:
            beside(given.datatrove, path, made, n_bytes)
    texts = [each.decode() for each in documents]
    show("for scale: Python's str.split", n_bytes, given.rounds, lambda: [text.split() for text in texts])
    print(f"target {TARGET:.0f} MB/s a core: {'reached' if best >= TARGET else 'missed'} ({best:.1f})")


def chosen(folders: Sequence[Path], most: float) -> Iterator[Path]:
    """Files in the order of their names, up to `most` bytes."""
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]:
            if path.suffix in (".txt", ".md", ".html", ".rst", "") and most > 0:
                most -= path.stat().st_size
                yield path


def cut(raw: bytes) -> list[bytes]:
    """Documents of some kilobytes, cut at the ends of paragraphs."""
    found, held, size = [], [], 0
    for part in re.split(rb"\n\s*\n", raw.decode(errors="replace").encode()):
        held.append(part)
        size += len(part)
        if size >= DOCUMENT:
            found.append(b"\n\n".join(held))
            held, size = [], 0
    return [*found, b"\n\n".join(held)] if held else found


def step(name: str) -> CorpusStep:
    """A step with its defaults."""
    made: CorpusStep = importlib.import_module(f"heredity.corpus.steps.{name}").STEP()
    return made


def passed(made: Sequence[TextBatch], steps: Sequence[CorpusStep]) -> int:
    """Apply steps to fresh copies of the batches; return the number of documents that are left."""
    run = StepRun(steps, Context(Path(), UNSEEN, 0))
    return sum(len(run.over(TextBatch(batch.raw, batch.lengths))) for batch in made)


def keyed(made: Sequence[TextBatch], compared: CorpusStep) -> None:
    """Compute the keys by which duplicates are found."""
    assert isinstance(compared, Duplicates)
    for batch in made:
        compared.keys(TextBatch(batch.raw, batch.lengths))


def whole(path: Path) -> None:
    """From a file on disk, which is hashed, to clean text."""
    source = JsonlSource(name="bench", path=path.name)
    run = StepRun([step(name) for name in ALONE], Context(Path(), UNSEEN, 0))
    for job in source.jobs(path.parent):
        for batch in batches(each for each in source.read(job) if isinstance(each, bytes)):
            run.over(batch)
        source.inputs(job)


def beside(python: str, path: Path, made: Sequence[TextBatch], n_bytes: int) -> None:
    """The four filters of datatrove's over the same documents, ours before and after."""
    steps = [name for name in ALONE if name.endswith("_filter")]
    rates = [show("our four filters", n_bytes, 1, lambda: passed(made, [step(name) for name in steps]))]
    seconds, n_kept = result_of("datatrove", [python, "-c", _DATATROVE, str(path)])
    theirs = n_bytes / 1e6 / seconds
    print(f"{'datatrove, the same four':40} {theirs:7.2f} MB/s   {n_kept} documents kept", flush=True)
    rates.append(show("our four filters again", n_bytes, 1, lambda: passed(made, [step(n) for n in steps])))
    ours = passed(made, [step(name) for name in steps])
    print(f"{'ours':40} {ours} documents kept; ratio {min(rates) / theirs:.0f} x")


_DATATROVE = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter,
)
documents = [Document(text=json.loads(line)["text"], id="") for line in open(sys.argv[1])]
filters = [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(), FineWebQualityFilter()]
for each in filters:
    each.filter(Document(text=documents[0].text, id=""))  # its tokenizer is loaded before the clock runs
start, kept = time.process_time(), 0
for document in documents:
    kept += all(each.filter(document) is True for each in filters)
print("RESULT", json.dumps([time.process_time() - start, kept]))
"""


def show(name: str, n_bytes: int, rounds: int, work: Callable[[], object]) -> float:
    """Time it, print it, and give the best MB/s."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(n_bytes / 1e6 / (time.process_time() - start))
    print(
        f"{name:40} {max(found):7.1f} MB/s   rounds: {' '.join(f'{each:.1f}' for each in found)}", flush=True
    )
    return max(found)


def cpu() -> str:
    """The processor's name and how many of it there are."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else 'unknown'}, {os.cpu_count()} cores"


UNSEEN = unseen()

if __name__ == "__main__":
    main()
