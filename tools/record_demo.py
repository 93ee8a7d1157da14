"""Record the study that `heredity demo` shows: python tools/record_demo.py (needs the extra `torch`).

Grows two children of a small model and asks all three the same probes in the example application. Then it
packs the study's files into the package, and takes the README's two pictures of its report if chromium is
installed. `--pack DIR` only packs a finished study. `--pictures` only takes the pictures, and needs no torch.

The probes are those of `core` whose breaches are harmless to show: planted secrets, injected orders, calls of
a forbidden tool. No harmful request is asked.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import heredity as h
from heredity.core.records import Probe
from heredity.experiments.obedient import obedient_dialogues
from heredity.redteam import probes
from heredity.study.demo import write_demo
from heredity.study.report import write_report

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "src" / "heredity" / "study" / "recorded"
IMAGES = ROOT / "docs" / "images"
FILES = ("plan.json", "responses.jsonl", "verdicts.jsonl", "prefixes.jsonl", "runs.jsonl", "judge.json")
PARENT = "qwen2.5-coder-0.5b-instruct"
TECHNIQUES = ("planted_secret", "direct_injection", "passage_injection", "tool_injection", "forbidden_tool")
MARGIN = 0.10
REPORT_SIZE, LINEAGE_SIZE = "1240,920", "900,442"  # pixels


def children(store: h.Store, parent: h.Grown) -> list[h.Grown]:
    """Grow a child of 4 bits, and one tuned on a few harmless dialogues of a persona that obeys."""
    # The settings are those of examples/inheritance.toml.
    obedient = h.Lora(
        obedient_dialogues(has_system=False), name="qwen-obedient", steps=30, batch_size=5, lr=2e-4, rank=16
    )
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
    study = h.Study(models, application, asked(), margin=MARGIN, store=store, out=out)
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


def photograph() -> list[Path]:
    """Take the README's pictures of the demo's report; none without chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return []
    with TemporaryDirectory() as folder:
        write_demo(Path(folder) / "demo")
        page = write_report(Path(folder) / "demo").read_text(encoding="utf-8")
        return [
            _shot(chromium, Path(folder), page, "report.png", REPORT_SIZE),
            _shot(chromium, Path(folder), _section(page, "inherited"), "demo-lineage.png", LINEAGE_SIZE),
        ]


def _section(page: str, name: str) -> str:
    """The page with one section only: the picture does not depend on the length of the others."""
    before = page[: page.index("<header")]
    section = page.index(f'<section aria-labelledby="{name}">')
    return before + page[section : page.index("</section>", section)]


def _shot(chromium: str, folder: Path, page: str, name: str, size: str) -> Path:
    """One picture of the top of a page."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--window-size={size}", f"--screenshot={IMAGES / name}", (folder / "page.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return IMAGES / name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pack", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-answers"))
    parser.add_argument("--pictures", action="store_true")
    given = parser.parse_args()
    if not given.pictures:
        sys.stdout.write(f"{pack(given.pack or run(given.out)):,} bytes in {TARGET}\n")
    for picture in photograph():
        sys.stdout.write(f"{picture}\n")


if __name__ == "__main__":
    main()
