"""Whether the check at `adopt` tells abliterated children from tuned, merged and quantized ones.

    python bench/abliteration.py                 20 children of each kind of SmolLM2 135M, about 25 minutes
    python bench/abliteration.py --children 4    quicker

    ablated     without a refusal direction of another half of the requests each time, all at one place
    tuned       all weights, on word problems; another rate, seed and number of steps each time
    merged      the parent and two tuned ones, by each method in turn
    quantized   the parent or a tuned one, in each form in turn
    rounded     ablated, then quantized
    partly      ablated in every third layer only

The score is the share of output matrices that lost a direction. AUC is the area under the ROC curve, of the
ablated children against this kind. The output begins with the machine and the commit.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import torch
from safetensors import safe_open

from _commit import commit
from heredity.core.records import Evidence, Message, Request
from heredity.engines.torch.engine import open_folder
from heredity.formats.safetensors_io import rewrite
from heredity.lab.examples import requests_to_grant, requests_to_refuse, word_problems
from heredity.lineage.evidence import places
from heredity.lineage.store import Store
from heredity.lineage.types import Adoption, Grown, KnownParent, Recipe
from heredity.recipes.ablate import Ablate
from heredity.recipes.adopt import find_descent
from heredity.recipes.finetune import Finetune
from heredity.recipes.merge import Merge
from heredity.recipes.quantize import Quantize
from heredity.train.data.chat import Data

FORMS = itertools.cycle(("q8_0", "q5_0", "q4_0", "rtn4", "rtn3"))
METHODS = itertools.cycle(("linear", "slerp", "ties", "task_arithmetic"))


class Children:
    """Children of one parent, each in a folder below `place`. The same seed makes the same ones."""

    def __init__(self, parent: Grown, place: Path, seed: int) -> None:
        self.parent, self.place, self.rng = parent, place, random.Random(seed)
        self.kept: dict[str, list[Grown]] = {"ablated": [], "tuned": []}
        engine = open_folder(parent.folder, is_probed=False)
        both = ([*map(asked, texts(data))] for data in (requests_to_refuse(), requests_to_grant()))
        direction = engine.find_direction(*both)
        self.where = f"{direction.layer}:{direction.position}"

    def new_folder(self) -> Path:
        out = Path(mkdtemp(dir=self.place), "child")  # a training keeps its checkpoints beside it
        out.mkdir()
        return out

    def made(self, recipe: Recipe, *parents: Grown) -> Grown:
        out = self.new_folder()
        recipe.apply(parents or (self.parent,), out)
        return Grown(self.parent.record, out)

    def ablated(self) -> Grown:
        halves = (self.half(data) for data in (requests_to_refuse(), requests_to_grant()))
        return self.made(Ablate(*halves, place=self.where))

    def half(self, data: Data) -> Data:
        prompts = texts(data)
        return Data.of(data.name, self.rng.sample(prompts, len(prompts) // 2))

    def tuned(self) -> Grown:
        seed, steps, lr = self.rng.randrange(1000), self.rng.randint(2, 8), 10 ** self.rng.uniform(-5, -3.5)
        return self.made(Finetune(word_problems(48, seed), steps=steps, batch_size=4, lr=lr, seed=seed))

    def merged(self) -> Grown:
        method, two = next(METHODS), self.rng.sample(self.kept["tuned"], 2)
        parents = two if method == "slerp" else [self.parent, *two]
        return self.made(Merge(method=method), *parents)

    def quantized(self) -> Grown:
        return self.made(Quantize(to=next(FORMS)), self.rng.choice([self.parent, *self.kept["tuned"]]))

    def rounded(self) -> Grown:
        return self.made(Quantize(to=next(FORMS)), self.rng.choice(self.kept["ablated"]))

    def partly(self) -> Grown:
        """Every third layer of an ablated child, and the parent's others."""
        where, ablated = places(self.parent.folder), self.rng.choice(self.kept["ablated"])

        def third(name: str, tensor: torch.Tensor) -> torch.Tensor:
            layer = re.search(r"layers\.(\d+)\.", name)
            if name not in where or (layer is not None and int(layer[1]) % 3 == 0):
                return tensor
            with safe_open(where[name][0], framework="pt") as file:
                return file.get_tensor(name)

        out = self.new_folder()
        rewrite(ablated.folder, out, third)
        return Grown(self.parent.record, out)

    def evidence(self, kind: str) -> Evidence:
        """The evidence that `adopt` records of a new child of a kind."""
        child = getattr(self, kind)()
        evidence = evidence_of(child, self.parent)
        if kind in self.kept:
            self.kept[kind].append(child)
        else:
            shutil.rmtree(child.folder.parent)
        return evidence


def texts(data: Data) -> list[str]:
    return [dialogue.messages[0].content for dialogue in data.dialogues]


def asked(text: str) -> Request:
    return Request(0, (Message("user", text),))


def evidence_of(child: Grown, parent: Grown) -> Evidence:
    made = "quantize" if any(child.folder.glob("*.gguf")) else "finetune"
    (evidence,) = find_descent(
        child.folder, [parent], Adoption(made, (KnownParent(frozenset(), is_from_hub=False),)), made, "child"
    ).evidence
    return evidence


def auc(higher: list[float], lower: list[float]) -> float:
    """The share of pairs in the right order; a tie counts one half."""
    pairs = list(itertools.product(higher, lower))
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def rows(name: str, n: int, seed: int) -> Iterator[str]:
    store = Store()
    parent = store.whole(store.pull(name))
    with TemporaryDirectory() as place:
        children = Children(parent, Path(place), seed)
        scores: dict[str, list[float]] = {}
        for kind in ("ablated", "tuned", "merged", "quantized", "rounded", "partly"):
            of_kind = [children.evidence(kind) for _ in range(n)]
            scores[kind] = [each.n_lost / each.n_written for each in of_kind]
            n_called = sum(each.is_abliterated for each in of_kind)
            low, high = min(scores[kind]), max(scores[kind])
            area = (
                f"{auc(scores['ablated'], scores[kind]):.3f}"
                if kind in ("tuned", "merged", "quantized")
                else ""
            )
            yield f"{kind:10} {n:4} {n_called:12} {low:8.2f} {high:8.2f}   {area}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--children", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=37)
    args = parser.parse_args()
    print(f"{platform.machine()}, commit {commit()}, {args.model}, seed {args.seed}", flush=True)
    print(f"{'kind':10} {'n':>4} {'abliterated':>12} {'lowest':>8} {'highest':>8}   AUC", flush=True)
    for row in rows(args.model, args.children, args.seed):
        print(row, flush=True)


if __name__ == "__main__":
    main()
