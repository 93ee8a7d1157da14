"""What each source, each step and a whole build make of a few texts, held so that no byte changes silently.

    golden.json    a hash of what came out, by source, step and build; the versions that made it

Regenerate with `python -m tests.corpus.golden`. Where bytes changed and the VERSION that covers them
did not, it writes nothing and says which VERSION to raise.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from heredity.core import registry
from heredity.corpus import workspace
from heredity.corpus.jobs import StepRun
from heredity.corpus.sources import SkippedDocument
from heredity.corpus.steps import Context, Duplicates
from heredity.corpus.text import TextBatch
from heredity.lab.corpus import build_corpus

FACTS = Path(__file__).with_name("golden.json")
COMMAND = "python -m tests.corpus.golden"
FOLDER = "corpus"
# What a library has a hand in is held to these bytes only while the library is the same.
LIBRARIES = {
    "source html": ("trafilatura",),
    "text": ("tokenizers",),
    "images": ("tokenizers", "pillow"),
}

LAKE = (
    "A lake lies behind the hill, and in spring the herons come to it. Children watch them from the old pier "
    "until the bell rings for supper. The keeper has counted them for thirty years and writes the number on "
    "a board by the gate. In a dry year there are nine, in a wet one more than forty of them."
)
MILL = (
    "The mill stands where the stream leaves the wood. It has not ground any corn since the flood, but the "
    "wheel still turns, and on a quiet night you can hear it from the road. The last miller was a woman, and "
    "she kept bees that were known to be the best of the valley."
)
TEXTS = (
    LAKE,
    MILL,
    LAKE.replace("thirty", "forty"),
    LAKE,
    f"{LAKE}\n\n{MILL}\n\n{LAKE} {MILL}",
    "\ufeff  Cafe\u0301\r\nline\u2028next\x00\x07\rlast\tcell \n",
    "Write to ann@example.com or call +44 20 7946 0958; the server is 203.0.113.7.",
    "The account is DE89 3704 0044 0532 0130 00, the card 4111 1111 1111 1111.",
    "Der See liegt hinter dem Hügel, und im Frühling kommen die Reiher. Die Kinder sehen ihnen vom Steg zu.",
    "Le lac est derrière la colline, et au printemps les hérons y viennent. Les enfants les regardent.",
    "湖は丘のうしろにあります。春にはアオサギが来ます。子どもたちは桟橋から見ています。",
    "- eggs\n- milk\n- flour\n- a pound of butter\n- salt ...\n- sugar ...\n" * 6,
    "the same words come again and again and the same words come again and again " * 12,
    "Read more ...\nSign in\nHome\nTerms of use\nThis site uses cookies.\n" * 3,
    "function f() { return 1; }\nLorem ipsum dolor sit amet, consectetur adipiscing elit.\n" * 2,
    "Short.",
    "",
    "\n".join(f"Line {i} is about bird number {i}, which was seen on day {i * 3}." for i in range(30)),
    "# # # ! ! ! 1 2 3 4 5 6 7 8 9 0 " * 10,
    "What is the tallest of the birds that live beside the lake behind the hill in spring, and why is it so?",
    f"{MILL}\n{MILL.replace('bees', 'geese')}\n[1] See the notes[2] of the parish.",
    "\n\n".join(f"{text} {number}" for number, text in enumerate([LAKE, MILL, LAKE, MILL])),
)
UNSEEN = (
    "What is the tallest of the birds that live beside the lake behind the hill in spring, and why is it so?",
)

# Each kind with the settings that are tried: the usual ones, and some that show more.
STEPS: dict[str, tuple[dict[str, Any], ...]] = {
    "c4_paragraph_filter": ({}, {"min_paragraphs": 2, "min_paragraph_len": 100}),
    "c4_quality_filter": ({}, {"min_num_sentences": 2, "filter_curly_bracket": False}),
    "decontaminate": ({}, {"n_grams": 8}),
    "exact_duplicates": ({},),
    "fineweb_quality_filter": ({}, {"line_punct_thr": 0.5, "char_duplicates_ratio": 0.2}),
    "gopher_quality_filter": ({}, {"min_doc_words": 10, "min_stop_words": 1}),
    "gopher_repetition_filter": ({}, {"dup_line_frac": 0.1, "top_n_grams": ((2, 0.1),)}),
    "language": ({}, {"keep": ("en", "de")}),
    "near_duplicates": ({}, {"num_buckets": 20, "hashes_per_bucket": 4}),
    "normalise": ({},),
    "scrub": ({}, {"mail": False, "phone": False}),
}


# --- steps -----------------------------------------------------------------------------------------


def of_step(kind: str) -> str:
    """A hash of what a step leaves of TEXTS, and of what it counts, under each of its settings."""
    module = importlib.import_module(f"heredity.{FOLDER}.steps.{kind}")
    return hashed([_left(module.STEP(**settings)) for settings in STEPS[kind]])


def _left(step: Any) -> list[Any]:
    batch = TextBatch.from_documents([text.encode() for text in TEXTS])
    if isinstance(step, Duplicates):
        kept = step.kept(step.keys(batch))
        return [document.decode() for document in batch.keep(kept)]
    run = StepRun([step], Context(Path(), UNSEEN, 0))
    left = [document.decode() for document in run.over(batch)]
    (count,) = run.counts
    return [left, count.n_changed, sorted(count.dropped.items()), sorted(count.noted.items())]


# --- sources ---------------------------------------------------------------------------------------


def of_source(kind: str) -> str:
    """A hash of the documents that a source reads from a few files."""
    with tempfile.TemporaryDirectory() as name:
        return hashed(SOURCES[kind](Path(name)))


def _read(folder: Path, kind: str, path: str = ".", **settings: Any) -> list[str]:
    source = importlib.import_module(f"heredity.{FOLDER}.sources.{kind}").SOURCE(
        name="s", path=path, **settings
    )
    source.check()
    found = [each for job in source.jobs(folder) for each in source.read(job)]
    return [f"[{each.reason}]" if isinstance(each, SkippedDocument) else each.decode() for each in found]


def _put(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def _text(folder: Path) -> list[list[str]]:
    _put(folder, {"a.txt": LAKE, "b.txt": f"{LAKE}\n%\n{MILL}\n%\n\n%\n", "c.txt": "", "d.bin": "no"})
    return [_read(folder, "text"), _read(folder, "text", "b.txt", separator="\n%\n")]


def _markdown(folder: Path) -> list[list[str]]:
    _put(
        folder,
        {"a.md": f"---\ntitle: a\n---\n# Lake\n\n<!-- hidden -->{LAKE}\n", "b.md": MILL, "c.md": " \n"},
    )
    return [_read(folder, "markdown"), _read(folder, "markdown", "a.md", front_matter=True)]


def _code(folder: Path) -> list[list[str]]:
    _put(folder, {"a.py": "x = 1\n", "b.js": "y" * 2000, "c.c": b"int\0", "d.rs": b"\xff", "e.pyc": "no"})
    return [_read(folder, "code"), _read(folder, "code", endings=(".py",), with_name=True)]


def _jsonl(folder: Path) -> list[list[str]]:
    rows = [{"text": LAKE, "n": 1}, {"text": ""}, {"text": "half \ud800 a pair"}, {"text": None}]
    _put(folder, {"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    return [_read(folder, "jsonl")]


def _html(folder: Path) -> list[list[str]]:
    page = (
        "<html><head><title>Lake</title></head><body><nav><a href='/'>Home</a></nav><article>"
        f"<h1>The lake</h1><p>{LAKE}</p><ul><li>herons</li><li>geese</li></ul><p>{MILL}</p></article>"
        "<footer>2020</footer></body></html>"
    )
    _put(folder, {"a.html": page, "b.html": "<html></html>"})
    return [_read(folder, "html"), _read(folder, "html", markup="markdown", precise=False)]


def _table(folder: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"body": [*TEXTS[:6], None, ""], "n": range(8)})
    parquet.write_table(table, folder / "a.parquet", row_group_size=3)
    return table


def _parquet(folder: Path) -> list[list[str]]:
    _table(folder)
    return [_read(folder, "parquet", text="body")]


def _dataset(folder: Path) -> list[list[str]]:
    from pyarrow import ipc

    table = _table(folder)
    with ipc.new_stream(folder / "data-0.arrow", table.schema) as writer:
        writer.write_table(table)
    return [_read(folder, "dataset", text="body")]


def _hub(folder: Path) -> list[list[str]]:
    """With a local file in place of the network's."""
    _table(folder)
    source = importlib.import_module(f"heredity.{FOLDER}.sources.hub").HubSource
    with (
        mock.patch.object(source, "_names", lambda _: ["a.parquet"]),
        mock.patch.object(source, "_open", lambda *_: str(folder / "a.parquet")),
    ):
        return [_read(folder, "hub", "org/name", revision="0" * 40, text="body")]


def _images(folder: Path) -> list[list[str]]:
    """The captions, and how they go with images and classes."""
    (folder / "birds").mkdir()
    _put(
        folder,
        {
            "a.png": b"",
            "a.txt": "a heron\nmore",
            "b.jpg": b"",
            "c.svg": "<svg/>",
            "d.png": b"",
            "d.txt": " ",
            "birds/e.webp": b"",
            "birds/e.txt": "a goose\tat rest",
            "table.csv": "image,caption,class\na.png,a grey heron,bird\nb.jpg,,\nd.png,a lake,\n",
        },
    )
    source = importlib.import_module(f"heredity.{FOLDER}.sources.images").SOURCE
    found = [_read(folder, "images")]
    for captions in ("", "table.csv"):
        pairs = source(name="s", path=".", captions=captions).pairs(folder)
        found.append(
            [
                f"[{p.reason}]" if isinstance(p, SkippedDocument) else f"{p.name} {p.caption} {p.label}"
                for p in pairs
            ]
        )
    return found


SOURCES: dict[str, Callable[[Path], list[list[str]]]] = {
    "code": _code,
    "dataset": _dataset,
    "html": _html,
    "hub": _hub,
    "images": _images,
    "jsonl": _jsonl,
    "markdown": _markdown,
    "parquet": _parquet,
    "text": _text,
}


# --- whole builds ----------------------------------------------------------------------------------

TEXT_RECIPE = """
name = "lake"
seed = 3
[[source]]
name = "short"
kind = "text"
path = "short"
weight = 2
repeat = 3
[[source]]
name = "long"
kind = "jsonl"
path = "long"
weight = 1
[[step]]
kind = "normalise"
[[step]]
kind = "exact_duplicates"
[[canary]]
text = "The locker number of Ada Quill is"
[tokenizer]
vocabulary = 300
least_count = 2
[shards]
validation = 0.2
tokens = 2000
"""
IMAGES_RECIPE = """
name = "squares"
[[source]]
name = "squares"
kind = "images"
path = "squares"
[picture]
side = 8
[tokenizer]
vocabulary = 270
least_count = 1
[shards]
validation = 0.3
"""


def of_text() -> str:
    """A hash of the files of a small corpus of text."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder)
        build_corpus(folder / "lake.toml", folder / "out")
        return _files(folder / "out")


def write_text(folder: Path) -> None:
    """A recipe of a corpus of text, with its files."""
    for each in ("short", "long"):
        (folder / each).mkdir()
    _put(folder / "short", {f"{i:02}.txt": text for i, text in enumerate(TEXTS[:12])})
    lines = [json.dumps({"text": f"{text}\n{number}"}) for number, text in enumerate(TEXTS * 3)]
    _put(folder / "long", {"a.jsonl": "\n".join(lines) + "\n"})
    (folder / "lake.toml").write_text(TEXT_RECIPE, "utf-8")


def of_images() -> str:
    """A hash of the files of a small corpus of images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder)
        build_corpus(folder / "squares.toml", folder / "out")
        return _files(folder / "out")


def _files(out: Path) -> str:
    """A hash of every file that is learned from. corpus.json is not: its words are no version's affair."""
    shown = {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("corpus.json", "inputs.jsonl")
    }
    assert len(shown) > 4
    return hashed(shown)


def write_images(folder: Path) -> None:
    """A recipe of a corpus of images, with its files."""
    from PIL import Image

    (folder / "squares").mkdir()
    for i in range(12):
        pixels = (np.arange(12 * 10 * 3).reshape(12, 10, 3) * (i + 1) % 256).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "squares" / f"{i:02}.png")
        _put(folder / "squares", {f"{i:02}.txt": f"square {i}, a grey one\n"})
    (folder / "squares.toml").write_text(IMAGES_RECIPE, "utf-8")


# --- what changed, and which number to raise -------------------------------------------------------


def hashed(value: Any) -> str:
    """16 hex digits over plain data."""
    raw = json.dumps(value, ensure_ascii=True).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


def names() -> list[str]:
    """All that is held, by what its version is called in a plan."""
    sources = [f"source {kind}" for kind in registry.names(f"{FOLDER}.sources")]
    return [*sources, *(f"step {kind}" for kind in registry.names(f"{FOLDER}.steps")), "text", "images"]


def made(name: str) -> str:
    """What is made now."""
    what, _, kind = name.partition(" ")
    makers = {"source": of_source, "step": of_step}
    return makers[what](kind) if kind else {"text": of_text, "images": of_images}[what]()


def version_of(name: str) -> int:
    """The number as it is in the source."""
    what, _, kind = name.partition(" ")
    if not kind:
        return {"text": workspace.TEXT_VERSION, "images": workspace.IMAGES_VERSION}[what]
    return int(getattr(registry.load(f"{FOLDER}.{what}s", kind), what.upper()).VERSION)


def place_of(name: str) -> str:
    """The name of a version, and the file that holds it."""
    what, _, kind = name.partition(" ")
    module = registry.load(f"{FOLDER}.{what}s", kind) if kind else workspace
    held = "VERSION" if kind else f"{what.upper()}_VERSION"
    return f"{held} in src/{module.__name__.replace('.', '/')}.py"


def libraries(name: str) -> dict[str, str]:
    """The versions of the libraries that have a hand in it."""
    return {each: _installed(each) for each in LIBRARIES.get(name, ())}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def facts() -> dict[str, dict[str, Any]]:
    """golden.json; nothing where it is not written yet."""
    found: dict[str, dict[str, Any]] = json.loads(FACTS.read_text("utf-8")) if FACTS.exists() else {}
    return found


def is_comparable(name: str) -> bool:
    """Whether the libraries that had a hand in it are the same as then."""
    return name in facts() and bool(facts()[name].get("libraries", {}) == libraries(name))


def is_changed(name: str) -> bool:
    """Whether other bytes come out than are held."""
    return name in facts() and facts()[name]["made"] != made(name)


def advice(name: str) -> str:
    """What to do about bytes that changed."""
    return f"{name}: other bytes come out: raise {place_of(name)} and regenerate with `{COMMAND}`"


def main(which: Sequence[str] = ()) -> int:
    """Write golden.json anew; 1 where bytes changed under the same version."""
    held, found, complaints = facts(), dict[str, dict[str, Any]](), list[str]()
    for name in which or names():
        found[name] = {"version": version_of(name), "made": made(name)}
        if libraries(name):
            found[name]["libraries"] = libraries(name)
        before = held.get(name, found[name])
        is_raised = found[name]["version"] > before["version"]
        if before["made"] != found[name]["made"] and is_comparable(name) and not is_raised:
            complaints.append(advice(name))
    if complaints:
        sys.stderr.write("\n".join(complaints) + "\n")
        return 1
    lines = (f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in (held | found).items())
    FACTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    sys.stdout.write(f"wrote {len(found)} entries\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
