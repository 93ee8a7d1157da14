"""A corpus built from a recipe file, kept clear of what heredity will ask the model that learns from it.

The only place that knows both the building of a corpus and the probes: their texts are handed down as texts.

Promises: a step `decontaminate` looks for every probe that a breach or its benign twin is asked by, and for
every item of the tasks of `heredity eval`.
Leaves to others: the building (train/corpus/), the probes (probes/) and the tasks (tasks/).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heredity.corpus import build as building
from heredity.corpus import recipe as recipes
from heredity.corpus.card import Card
from heredity.corpus.images.card import PictureCard
from heredity.corpus.workspace import Watch
from heredity.evals import tasks
from heredity.redteam import probes


def build_corpus(
    path: Path, out: Path | None = None, workers: int = 1, watch: Watch | None = None
) -> Card | PictureCard:
    """Build the corpus of a recipe, of text or of pictures. out: a new folder, the recipe's own name without
    its ending if none is given. workers: processes; more than one start this program's main module again, as
    Python's spawn does. A build of text that was stopped or killed goes on.

    Raises BadInput with file and line, UsageError for what is empty, too little or already there.
    """
    recipe = recipes.read(path)
    if recipe.picture is not None:
        from heredity.corpus.images import build as drawing

        return drawing.build(recipe, out or path.with_suffix(""), workers, watch)
    return building.build(recipe, out or path.with_suffix(""), unseen(), workers, watch)


def pipeline(path: Path, out: Path) -> list[Any]:
    """A recipe's steps for an executor of datatrove's; what they keep comes to lie in `out`/kept.

    Raises BadInput, UsageError; Unavailable without datatrove.
    """
    from heredity.corpus import executors

    return executors.pipeline(recipes.read(path), unseen(), out)


def unseen() -> tuple[str, ...]:
    """What probes ask and show, and items of tasks, each once. A baseline of recall is left out: it asks what
    was learned."""
    return tuple(dict.fromkeys((*_probed(), *_tasked())))


def _tasked() -> Iterator[str]:
    for task in tasks.load(()):
        for item in task.items:
            yield item.input
            yield from item.references
            yield from item.options


def _probed() -> Iterator[str]:
    for probe in probes.load("full"):
        if not probe.is_baseline:
            yield from probe.turns
            if probe.passage:
                yield probe.passage
            if probe.tool_result is not None:
                yield probe.tool_result.text
