"""Split a recipe in two: a script that runs its first steps in many tasks, and a recipe for the rest.

A step that looks at one document at a time can run anywhere. The first step that compares all documents,
and every later step, run in `heredity corpus build` over the returned JSON lines.

Promises: both together are the recipe; a recipe that cannot be split is refused, with the reason.
Leaves to others: the tasks (executors.py), and the build (build.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from heredity.core.errors import BadInput, UsageError
from heredity.core.files import write_atomic
from heredity.corpus.recipe import CorpusRecipe, kind_of
from heredity.corpus.steps import Duplicates


def alone(recipe: CorpusRecipe) -> int:
    """The number of steps before the first one that compares all documents. Raises UsageError for none."""
    if recipe.images is not None:
        raise BadInput(recipe.path, "a corpus of images has no steps that could be spread over tasks.")
    compared = (i for i, step in enumerate(recipe.steps) if isinstance(step, Duplicates))
    n = next(compared, len(recipe.steps))
    if not n:
        why = "it has no step"
        if recipe.steps:
            why = f"the first step, '{kind_of(recipe.steps[0])}', compares all documents"
        raise BadInput(
            recipe.path,
            f"nothing of it can be spread over tasks: {why}. Put steps that look at one"
            " document at a time before it, or build it here: heredity corpus build",
        )
    return n


def export(recipe: CorpusRecipe, out: Path, tasks: int) -> None:
    """Write run.py, which starts the tasks, and after.toml, which builds a corpus of the kept documents."""
    stop = alone(recipe)
    if out.exists():
        raise UsageError(f"{out} exists already. Name another folder, or remove it.")
    done, left = ([kind_of(step) for step in steps] for steps in (recipe.steps[:stop], recipe.steps[stop:]))
    script = _SCRIPT.format(
        name=recipe.path.name.translate(_QUOTES),
        recipe=str(recipe.path.resolve()),
        tasks=tasks,
        done=", ".join(done),
        left=", ".join(left) or "no step",
    )
    write_atomic(out / "run.py", script.encode())
    write_atomic(out / "after.toml", "\n".join(_after(recipe, out, stop)).encode())


def _after(recipe: CorpusRecipe, out: Path, stop: int) -> Iterator[str]:
    yield f"name = {json.dumps(recipe.name)}\nseed = {recipe.seed}\n"
    for number, source in enumerate(recipe.sources):
        path = kept_of(out, number).relative_to(out).as_posix()
        weight = {} if source.weight is None else {"weight": source.weight}
        same = {"name": source.name, "kind": "jsonl", "path": path, "repeat": source.repeat}
        yield _table("[[source]]", same | weight)
    for step in recipe.steps[stop:]:
        yield _table("[[step]]", {"kind": kind_of(step)} | _placed(recipe, msgspec.to_builtins(step)))
    for canary in recipe.canaries:
        yield _table("[[canary]]", msgspec.to_builtins(canary))
    for name, part in (
        ("mixture", recipe.mixture),
        ("tokenizer", recipe.tokenizer),
        ("shards", recipe.shards),
    ):
        yield _table(f"[{name}]", _placed(recipe, msgspec.to_builtins(part)))


def _placed(recipe: CorpusRecipe, settings: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute that are relative to the recipe's folder."""
    root = recipe.root.resolve()
    if settings.get("sets"):
        settings["sets"] = [str(root / name) for name in settings["sets"]]
    if settings.get("folder"):
        settings["folder"] = str(root / settings["folder"])
    return settings


def _table(head: str, settings: dict[str, Any]) -> str:
    rows = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    return "\n".join([head, *rows, ""])


def kept_of(out: Path, source: int) -> Path:
    """The folder for the kept documents of a source."""
    return out / "kept" / f"{source:03}"


_QUOTES = str.maketrans({'"': "'", "\\": "/"})  # neither may end the docstring of the script
_SCRIPT = '''"""The steps of {name} that look at one document at a time, on datatrove's executors.

    {done}

    python run.py                       into kept/; a task that is done is not done again
    heredity corpus build after.toml    the rest: {left}, and tokens

On a cluster only the executor is another, with the same steps, tasks and logs:

    from datatrove.executor import SlurmPipelineExecutor
    SlurmPipelineExecutor(steps, tasks={tasks}, time="10:00:00", partition="...", logging_dir=...).run()
"""

import os
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor

from heredity.lab.corpus import pipeline

HERE = Path(__file__).resolve().parent
RECIPE = Path({recipe!r})

if __name__ == "__main__":
    steps = pipeline(RECIPE, HERE)
    workers = min({tasks}, os.cpu_count() or 1)
    LocalPipelineExecutor(steps, tasks={tasks}, workers=workers, logging_dir=str(HERE / "logs")).run()
'''
