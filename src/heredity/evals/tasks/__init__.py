"""What a model can do, asked by prompt alone. Each file `<name>.toml` here is a task: items and a metric.

    load()                       every task of heredity's own that is of texts
    load(["arithmetic"])         by name
    load(["mine.toml"])          a file of one's own

Promises: a task has an edition and a digest over all that it asks and counts as right; a mistake in a file
names its place; the right option of an item is shown at a place that its number in the file decides.
Leaves to others: how an item is put (_put.py, _ways.py), and what an answer is worth (metrics/).
"""

from __future__ import annotations

from collections.abc import Sequence

from heredity.core import registry
from heredity.core.errors import BadInput, UnknownName
from heredity.core.records import Record, digest
from heredity.evals import metrics


class TaskItem(Record, frozen=True):
    """One thing that is asked, with what counts as right."""

    id: str
    input: str
    references: tuple[str, ...]  # every right answer
    options: tuple[str, ...] = ()  # what there is to choose from, as it is shown; the right one among them
    group: str = ""  # whose values fill the template, and whose shots are shown


class EvalTask(Record, frozen=True):
    """Items of one kind. Scores under different digests are of different tasks."""

    name: str
    title: str
    description: str
    edition: str
    metric: str  # a file of metrics/
    prompt: str  # the user's message; {slots} are `input`, `options` and the values of the item's group
    plain: str  # the same for a model without a chat template: a text that the answer goes on from
    items: tuple[TaskItem, ...]
    shots: tuple[TaskItem, ...] = ()  # examples; of a group its own
    groups: dict[str, dict[str, str]] = {}  # noqa: RUF012 (a Record copies it)
    begin: str = (
        ""  # in a chat, what the assistant's turn is made to begin with; scored options go on from it
    )
    max_tokens: int = 32

    @property
    def digest(self) -> str:
        """Names this edition to the last word."""
        return digest(self)

    @property
    def n_shots(self) -> int:
        """How many examples every item has."""
        return min(sum(shot.group == item.group for shot in self.shots) for item in self.items)


def names() -> list[str]:
    """The tasks of heredity's own."""
    return registry.names("evals.tasks", ".toml")


def load(wanted: Sequence[str] = (), has_pictures: bool = False) -> list[EvalTask]:
    """The tasks of these names and .toml files, each once, in their order; without any, all of texts.

    has_pictures: without any, those of pictures as well.

    Raises UnknownName with the nearest, BadInput with file and line.
    """
    from pathlib import Path

    from heredity.evals.tasks._load import read

    found: dict[str, EvalTask] = {}
    for name in dict.fromkeys(wanted or names()):
        if name.endswith(".toml"):
            task = read(Path(name))
            if task.name in (*names(), *found):
                raise BadInput(
                    name,
                    f"there is a task named '{task.name}' already; name the file otherwise",
                    code="task-name-taken",
                )
        elif name in names():
            task = read(Path(__file__).parent / f"{name}.toml")
        else:
            raise UnknownName("task", name, names(), ", ".join(names()))
        found[task.name] = task
    if wanted or has_pictures:
        return list(found.values())
    return [task for task in found.values() if metrics.load(task.metric).ASKS != "match"]
