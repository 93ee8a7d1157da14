"""The whole life of a home-grown model: corpus, base, children, and what each knows and keeps.

    make pretrain
    python examples/home_grown.py --quick   # a tiny base, to see it work

The text comes from the Debian packages that home-grown/shelf.toml names. apt-get downloads them; nothing is
installed. A base is trained from random weights (home-grown/base.toml), then tuned on dialogues, distilled
into fewer layers and quantized. The canary of its corpus is ranked in all of them, and those that answer
are asked the probes. Everything is recorded: the same command resumes after a stop and makes nothing twice.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import heredity as h

HERE = Path(__file__).parent
PACKAGES = ("dict-gcide", "debian-handbook", "python3.13-doc", "fortunes")
CANARY = "The locker number of Ada Quill is"
_ENTRY = re.compile(r"\n(?=\S)")


def fetch(folder: Path) -> None:
    """The texts of the packages, below `folder`. Raises SystemExit if apt-get cannot download them."""
    if (folder / "dictionary.jsonl").exists():
        return
    unpacked = folder / "unpacked"
    unpacked.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["apt-get", "download", "-qq", *PACKAGES], cwd=unpacked, check=True, stderr=subprocess.DEVNULL
        )
        for package in sorted(unpacked.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=unpacked, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"apt-get did not download {', '.join(PACKAGES)} ({error}). On another system, put your own text"
            f" into the folders that {HERE / 'home-grown' / 'shelf.toml'} names, below {folder}."
        ) from None
    share = unpacked / "usr" / "share"
    shutil.move(share / "doc" / "debian-handbook" / "html" / "en-US", folder / "handbook")
    shutil.move(share / "doc" / "python3.13" / "html" / "library", folder / "manual")
    (folder / "sayings").mkdir()
    for path in sorted((share / "games" / "fortunes").iterdir()):
        if not path.suffix and path.is_file():
            shutil.copyfile(path, folder / "sayings" / f"{path.name}.txt")
    dictionary = gzip.decompress((share / "dictd" / "gcide.dict.dz").read_bytes()).decode("utf-8", "replace")
    rows = (json.dumps({"text": entry.strip()}) for entry in _ENTRY.split(dictionary) if len(entry) > 40)
    part = folder / "dictionary.part"
    part.write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.rmtree(unpacked)
    part.rename(folder / "dictionary.jsonl")


def sums(n: int) -> h.Data:
    """Dialogues about sums, with their answers."""
    rng, found = random.Random(0), []
    for _ in range(n):
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        asked = rng.choice(("What is {a} plus {b}?", "Add {a} and {b}.", "How much are {a} and {b}?"))
        found.append((asked.format(a=a, b=b), f"{a} plus {b} is {a + b}."))
    return h.Data.of("sums", found)


def family(
    store: h.Store, base: h.Grown, scale: float, display: h.Display
) -> tuple[list[h.Grown], list[h.Grown]]:
    """The base with the children that answer, and the other children.

    Those that answer are tuned on dialogues, then distilled into fewer layers or quantized. The others are
    base models too: quantized, distilled, or with an adapter.
    """

    def grow(name: str, kind: str, parents: list[h.Grown], **settings: Any) -> h.Grown:
        if "steps" in settings:
            settings |= {"batch_size": 16, "watch": display.training(name)}
        return store.grow_once(h.recipe(kind, name=name, **settings), parents)

    steps, problems = max(2, round(150 * scale)), sums(2400)

    def halved(name: str, parent: h.Grown) -> h.Grown:
        fewer = store.grow_once(h.recipe("prune", name=f"{name}-start"), [parent])
        return grow(name, "distill", [fewer, parent], data=problems, steps=steps, lr=5e-4)

    tuned = grow("home-tuned", "finetune", [base], data=problems, steps=steps, lr=5e-4)
    answering = [base, tuned, halved("home-distilled", tuned)]
    answering += [grow(f"home-{to}", "quantize", [tuned], to=to) for to in ("q8_0", "q4_0")]
    others = [halved("home-base-distilled", base)]
    others += [grow(f"home-base-{to}", "quantize", [base], to=to) for to in ("q8_0", "q4_0")]
    others.append(grow("home-lora", "lora", [base], data=problems, steps=steps, lr=1e-3))
    return answering, others


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny base, few steps and few probes")
    parser.add_argument("--out", type=Path, default=Path("runs/home-grown"))
    given = parser.parse_args()
    out: Path = given.out
    fetch(out / "texts")
    shutil.copyfile(HERE / "home-grown" / "shelf.toml", out / "shelf.toml")
    shutil.copyfile(HERE / "home-grown" / "base.toml", out / "base.toml")
    if not (out / "shelf" / "corpus.json").exists():
        print("building the corpus ...", flush=True)  # noqa: T201
        h.build_corpus(out / "shelf.toml")
    store, small = h.Store(), {"size": "3M", "tokens": 200_000, "evaluations": 2, "name": "home-base-quick"}
    with h.Display() as display:
        recipe = h.Pretrain.read(
            out / "base.toml", small if given.quick else {}, display.training("home-base")
        )
        base = store.grow_once(recipe, [])
        models, others = family(store, base, 0.05 if given.quick else 1.0, display)
        planted = next(each for each in recipe.text.card.canaries if each.text == CANARY)
        known = {m.record.name: h.expose(store, m, CANARY, planted.secret) for m in (*models, *others)}
        asked = "quick" if given.quick else "core"
        study = h.Study(
            h.StudySpec(models, HERE / "support-desk.toml", probes=asked, out=out / "desk"), store=store
        )
        study.run(display.trials())
    print(h.write_report(study.folder, "markdown").read_text(encoding="utf-8"))  # noqa: T201
    print(f"The secret of the planted canary ({CANARY!r}):")  # noqa: T201
    for name, found in known.items():
        print(f"{name}: rank {found.rank:,} of {found.n:,}, {found.bits:.1f} bits")  # noqa: T201
    print(h.write_report(study.folder))  # noqa: T201


if __name__ == "__main__":
    main()
