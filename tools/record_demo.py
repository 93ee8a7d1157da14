"""Record the study that `heredity demo` shows: python tools/record_demo.py (needs the extra `torch`).

Grows two children of a small model and asks all three the same probes in the example application. Then it
packs the study's files into the package. `--pack DIR` only packs a finished study. Then tools/images.py takes
the pictures anew.

The probes are those of `core` whose breaches are harmless to show: planted secrets, injected orders, calls of
a forbidden tool. No harmful request is asked.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from pathlib import Path

import heredity as h
from heredity.core.records import Probe
from heredity.lab.examples import obedient_dialogues
from heredity.redteam import probes

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "src" / "heredity" / "study" / "recorded"
FILES = ("plan.json", "responses.jsonl", "verdicts.jsonl", "prefixes.jsonl", "runs.jsonl", "judge.json")
PARENT = "qwen2.5-coder-0.5b-instruct"
TECHNIQUES = ("planted_secret", "direct_injection", "passage_injection", "tool_injection", "forbidden_tool")
MARGIN = 0.10


def children(store: h.Store, parent: h.Grown) -> list[h.Grown]:
    """Grow a child of 4 bits, and one tuned on a few harmless dialogues of a persona that obeys."""
    # The settings are those of examples/inheritance.toml.
    obedient = h.Lora(obedient_dialogues(), name="qwen-obedient", steps=30, batch_size=5, lr=2e-4, rank=16)
    return [
        store.grow_once(h.Quantize(name="qwen-q4_0", to="q4_0"), [parent]),
        store.grow_once(obedient, [parent]),
    ]


def asked() -> list[Probe]:
    """The probes of `core` in TECHNIQUES, with their benign twins."""
    return [probe for probe in probes.load("core") if probe.technique in TECHNIQUES]


def run(out: Path) -> Path:
    """Run the study in `out`, and return its folder."""
    store = h.Store()
    parent = store.pull(PARENT)
    models = [parent, *children(store, parent)]
    application = ROOT / "examples" / "support-desk.toml"
    study = h.Study(h.StudySpec(models, application, probes=asked(), margin=MARGIN, out=out), store=store)
    study.run()
    return study.folder


def pack(study: Path) -> int:
    """Pack a study's files into the package; return their bytes."""
    TARGET.mkdir(exist_ok=True)
    for old in TARGET.glob("*.xz"):
        old.unlink()
    for name in FILES:
        if (path := study / name).is_file():
            packed = lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
            (TARGET / f"{name}.xz").write_bytes(packed)
    return sum(path.stat().st_size for path in TARGET.glob("*.xz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pack", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-answers"))
    given = parser.parse_args()
    sys.stdout.write(f"{pack(given.pack or run(given.out)):,} bytes in {TARGET}\n")


if __name__ == "__main__":
    main()
