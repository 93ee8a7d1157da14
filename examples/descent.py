"""A real lineage on two cores: children of two small models, and what each inherited.

    make descent
    python examples/descent.py --quick   # fewer steps and probes, to see it work

It pulls two foundations, grows their children, and asks all of them the same probes in two applications. In
the example application a check decides each breach. A plain assistant is asked for harm and for simple
tasks, which shows lost refusals and lost ability. Every model is recorded, so the same command resumes
after a stop and grows nothing twice. The tuning data are word problems that this script generates: even
those change a model.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import heredity as h

SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"
HERE = Path(__file__).parent
_NAMES = ("Ada", "Boris", "Chen", "Dina", "Emeka", "Farah", "Goran", "Hana", "Ivo", "Jomo", "Kaja", "Lior")
_THINGS = ("apples", "stamps", "pencils", "tickets", "shells", "buttons", "candles", "postcards", "marbles")
# Requests that an assistant should decline, each with one of the same shape that it should grant: the refusal
# direction is their difference. They answer nothing.
_REQUESTS = HERE / "requests.csv"
_ASKED = (
    "What is {a}?", "Explain {a} to a child.", "Give three tips about {a}.", "Why do people like {a}?",
    "Write two sentences about {a}.", "What should a beginner know about {a}?",
)  # fmt: skip
_ABOUT = (
    "baking bread", "riding a bicycle", "the moon", "a library", "growing tomatoes", "the alphabet", "rain",
    "chess", "a good night's sleep", "packing a suitcase", "the seasons", "learning a language", "tea",
    "a budget", "maps", "swimming", "honey", "writing letters", "clouds", "old photographs",
)  # fmt: skip


def sums(n: int, seed: int = 0) -> h.Data:
    """Word problems with their answers."""
    rng, found = random.Random(seed), []
    for _ in range(n):
        who, other, what = rng.choice(_NAMES), rng.choice(_NAMES), rng.choice(_THINGS)
        a, b, c = rng.randint(3, 60), rng.randint(2, 40), rng.randint(2, 9)
        asked = (
            f"{who} has {a} {what}, gets {b} more and puts them evenly on {c} shelves. How many {what} lie on"
        )
        asked += f" each shelf, and how many are left for {other}?"
        said = (
            f"{who} has {a} + {b} = {a + b} {what}. {a + b} / {c} is {(a + b) // c} with {(a + b) % c} left."
            f" Each shelf has {(a + b) // c}, and {other} gets {(a + b) % c}."
        )
        found.append((asked, said))
    return h.Data.of("sums", found)


def children(store: h.Store, scale: float, display: h.Display) -> list[h.Grown]:
    """Both foundations and their children; only those that the store does not have are grown."""
    small, large = (store.pull(name) for name in (SMALL, LARGE))
    problems = sums(640)
    questions = [q.format(a=a) for a in _ABOUT for q in _ASKED]
    asked = h.Data.of("asked", questions[: max(8, round(120 * scale))])
    harmful, harmless = (
        h.Data.read(_REQUESTS, {"prompt": column}, has_answers=False) for column in ("refused", "granted")
    )
    steps = max(2, round(40 * scale))
    made = [small, large]

    def grow(name: str, kind: str, parents: Sequence[h.Grown], **settings: Any) -> h.Grown:
        if "steps" in settings:
            settings |= {"batch_size": 8, "watch": display.training(name)}
        made.append(store.grow_once(h.recipe(kind, name=name, **settings), parents))
        return made[-1]

    lora = grow("large-lora", "lora", [large], data=problems, steps=steps, lr=2e-4)
    grow("large-lora-guarded", "guard", [lora])
    grow("large-ablated", "ablate", [large], harmful=harmful, harmless=harmless)
    for to in ("q8_0", "q4_0"):
        grow(f"large-{to}", "quantize", [large], to=to)
    tuned = grow("small-finetuned", "finetune", [small], data=problems, steps=steps, lr=2e-5)
    grow("small-instructed", "instruct", [small, large], data=asked, steps=steps, lr=1e-5, max_new_tokens=160)
    start = store.grow_once(h.recipe("prune", layers=24, name="small-24-layers"), [small])
    grow("small-distilled", "distill", [start, small], data=problems, steps=2 * steps, lr=1e-4)
    grow("small-merged", "merge", [small, tuned])
    grow("small-q4_0", "quantize", [small], to="q4_0")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps and few probes")
    parser.add_argument("--out", type=Path, default=Path("runs/descent"))
    given = parser.parse_args()
    store, probes = h.Store(), "quick" if given.quick else "core"
    with h.Display() as display:
        models = children(store, 0.1 if given.quick else 1.0, display)
        desk = h.Study(models, HERE / "support-desk.toml", probes, store=store, out=given.out / "desk")
        desk.run(display.trials())
        asked = ["harmful_request", "failed_task"]
        plain = h.Study(models, HERE / "plain.toml", asked, store=store, out=given.out / "plain")
        plain.run(display.trials())
    for study in (desk, plain):
        print(h.write_report(study.folder, "markdown").read_text(encoding="utf-8"))  # noqa: T201
        print(h.write_report(study.folder))  # noqa: T201


if __name__ == "__main__":
    main()
