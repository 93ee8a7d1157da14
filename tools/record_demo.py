"""Record the study that `heredity demo` shows: python tools/record_demo.py (needs the extra `torch`).

Grows two children of a small model and asks the quick probes of all three in the example application. Then it
packs the study's files into the package. `--pack DIR` only packs a finished study.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from pathlib import Path

import heredity as h

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "src" / "heredity" / "study" / "recorded"
FILES = ("plan.json", "responses.jsonl", "verdicts.jsonl", "prefixes.jsonl", "runs.jsonl", "judge.json")
PARENT = "qwen2.5-coder-0.5b-instruct"


def run(out: Path) -> Path:
    """Grow the children, run the study in `out`, and return its folder."""
    store = h.Store()
    parent = store.pull(PARENT)
    harmful, harmless = (
        h.Data.read(ROOT / "examples" / "requests.csv", {"prompt": column}, has_answers=False)
        for column in ("refused", "granted")
    )
    children = [
        store.grow_once(h.recipe("quantize", name="qwen-q4_0", to="q4_0"), [parent]),
        store.grow_once(
            h.recipe("ablate", name="qwen-ablated", harmful=harmful, harmless=harmless), [parent]
        ),
    ]
    application = ROOT / "examples" / "support-desk.toml"
    study = h.Study([parent, *children], application, "quick", store=store, out=out)
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
