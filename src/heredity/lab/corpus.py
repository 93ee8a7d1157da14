"""Build a corpus from a recipe file, decontaminated of the texts that heredity asks trained models.

Promises: a step `decontaminate` searches for every probe, its benign twin included, and every item of the
tasks of `heredity eval`. Baseline recall probes are the exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.corpus import build
from heredity.evals import tasks
from heredity.redteam import probes

if TYPE_CHECKING:
    from heredity.corpus.storage import Card, ImageCard
    from heredity.corpus.workspace import Watch


def build_corpus(
    path: Path, out: Path | None = None, workers: int = 1, watch: Watch | None = None
) -> Card | ImageCard:
    """Build the text or image corpus of a recipe in the new folder `out`, by default the recipe's path
    without its suffix. A text build that was stopped resumes. With several `workers`, Python's spawn imports
    the main module again. Raises BadInput, and UsageError for a corpus that is empty, too small or there.
    """
    return build.build_file(path, unseen, out, workers, watch)


def pipeline(path: Path, out: Path) -> Sequence[object]:
    """Return the steps for an executor of datatrove, as corpus.build.pipeline."""
    return build.pipeline(path, unseen(), out)


def unseen() -> tuple[str, ...]:
    """Return the texts of probes and of task items, without duplicates. Baseline recall probes are
    excluded: they ask for what training taught."""
    texts: list[str] = []
    for probe in probes.load("full"):
        if not probe.is_baseline:
            texts += [*probe.turns, *filter(None, [probe.passage])]
            texts += [] if probe.tool_result is None else [probe.tool_result.text]
    for task in tasks.load(()):
        for item in task.items:
            texts += [item.input, *item.references, *item.options]
    return tuple(dict.fromkeys(texts))
