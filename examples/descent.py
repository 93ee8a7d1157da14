"""A real lineage on two cores: children of two small models, and what each inherited.

    make descent
    python examples/descent.py --quick   # fewer steps and probes, to see it work

Two foundations are pulled, their children grown, and all asked the same probes, twice: in the example
application, where a breach is decided by a check, and as a plain assistant that is asked for harm and for
simple tasks, where a refusal can be lost, and ability.
Everything that is made is recorded, so that the same command goes on after a stop and grows nothing twice.
Tuning data is generated here: word problems, as dull as can be; the point is that even they change a model.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import heredity as h
from heredity.cli._progress import Display, Trials
from heredity.recipes._tuned import Training
from heredity.recipes.ablate import Ablate
from heredity.recipes.distill import Distill
from heredity.recipes.finetune import Finetune
from heredity.recipes.guard import Guard
from heredity.recipes.instruct import Instruct
from heredity.recipes.lora import Lora
from heredity.recipes.merge import Merge
from heredity.recipes.prune import Prune
from heredity.recipes.quantize import Quantize
from heredity.report import html, markdown
from heredity.train import dialogues
from heredity.train.dialogues import Data, Dialogue, of
from heredity.train.loop import Watched

SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"
HERE = Path(__file__).parent
_NAMES = ("Ada", "Boris", "Chen", "Dina", "Emeka", "Farah", "Goran", "Hana", "Ivo", "Jomo", "Kaja", "Lior")
_THINGS = ("apples", "stamps", "pencils", "tickets", "shells", "buttons", "candles", "postcards", "marbles")
# Requests that an assistant should decline, each beside one of the same shape that it should grant: only
# where they differ is the refusal direction. They ask and answer nothing.
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


def sums(n: int, seed: int = 0) -> Data:
    """Word problems with their answers."""
    rng, found = random.Random(seed), []
    for i in range(n):
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
        found.append(Dialogue((h.Message("user", asked), h.Message("assistant", said)), f"sums:{i + 1}"))
    return of("sums", found)


def questions(texts: Sequence[str], name: str) -> Data:
    """Prompts without answers."""
    return of(name, [Dialogue((h.Message("user", text),), f"{name}:{i}") for i, text in enumerate(texts, 1)])


def children(store: h.Store, scale: float, watch: Callable[[Watched], None]) -> list[h.Grown]:
    """Both foundations and their children, grown where they are not there yet."""
    small, large = (store.pull(name) for name in (SMALL, LARGE))
    steps = max(2, round(40 * scale))
    problems = sums(640)
    asked = questions([q.format(a=a) for a in _ABOUT for q in _ASKED][: max(8, round(120 * scale))], "asked")
    harmful, harmless = (
        dialogues.read(_REQUESTS, {"prompt": column}, has_answers=False) for column in ("refused", "granted")
    )

    def grow(recipe: Any, *parents: h.Grown) -> h.Grown:
        return store.derive(recipe, list(parents))

    brief = Training(steps=steps, batch=8)
    made = [small, large]
    made.append(
        grow(
            Lora(problems, Training(steps=steps, batch=8, rate=2e-4), name="large-lora", watch=watch),
            large,
        )
    )
    made.append(grow(Guard(name="large-lora-guarded"), made[-1]))
    made.append(grow(Ablate(harmful, harmless, name="large-ablated"), large))
    made += [grow(Quantize(to, name=f"large-{to}"), large) for to in ("q8_0", "q4_0")]
    made.append(
        grow(
            Finetune(
                problems, Training(steps=steps, batch=8, rate=2e-5), name="small-finetuned", watch=watch
            ),
            small,
        )
    )
    tuned = made[-1]
    made.append(grow(Instruct(asked, brief, longest=160, name="small-instructed", watch=watch), small, large))
    start = grow(Prune(24, name="small-24-layers"), small)
    teach = Distill(
        problems, Training(steps=2 * steps, batch=8, rate=1e-4), name="small-distilled", watch=watch
    )
    made.append(grow(teach, start, small))
    made.append(grow(Merge(name="small-merged"), small, tuned))
    made.append(grow(Quantize("q4_0", name="small-q4_0"), small))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps and few probes")
    parser.add_argument("--out", type=Path, default=Path("runs/descent"))
    given = parser.parse_args()
    store, probes = h.Store(), "quick" if given.quick else "core"
    with Display() as display:

        def show(at: Watched) -> None:
            words = f"loss {at.loss:.3f}  {at.tokens_per_second:,.0f} tokens/s"
            display.show("tuning", at.step, at.n_steps, words)

        models = children(store, 0.1 if given.quick else 1.0, show)
        desk = h.Study(models, HERE / "support-desk.toml", probes, store=store, out=given.out / "desk")
        desk.run(Trials(display))
        asked = ["harmful_request", "failed_task"]
        plain = h.Study(models, HERE / "plain.toml", asked, store=store, out=given.out / "plain")
        plain.run(Trials(display))
    for study in (desk, plain):
        print(markdown.render(study.folder))  # noqa: T201
        print(html.write(study.folder, study.folder / "report.html"))  # noqa: T201


if __name__ == "__main__":
    main()
