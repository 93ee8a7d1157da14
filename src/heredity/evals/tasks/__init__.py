"""Tasks that measure a model's capability by prompting. Each file `<name>.toml` here is a task: items and a
metric.

    load()                       every text task of the package
    load(["arithmetic"])         by name
    load(["mine.toml"])          a file of your own

Promises: a task has an edition, and a digest over its questions and references. A mistake in a file names
its place. The position of an item's right option follows from the item's number.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from heredity.core import registry
from heredity.core.errors import BadInput, HeredityError, UnknownName, code_of, did_you_mean, nearest
from heredity.core.readers import toml_line, toml_line_of, toml_of
from heredity.core.records import Record, digest
from heredity.evals import metrics

_FILE, _READ = "picture:", "data:image;base64,"


def opened(text: str, task: Path, line: int) -> str:
    """Replace `picture:FILE` by the file's bytes; return any other text unchanged. Raises BadInput."""
    if not text.startswith(_FILE):
        return text
    try:
        raw = (task.parent / text.removeprefix(_FILE)).read_bytes()
    except OSError as error:
        raise BadInput(
            task, f"'{text}' cannot be read: {error.strerror}", line, code="unreadable-file"
        ) from None
    return _READ + base64.b64encode(raw).decode()


def bytes_of(text: str) -> bytes | None:
    """The bytes of an image reference that was read; None for any other text."""
    return base64.b64decode(text.removeprefix(_READ)) if text.startswith(_READ) else None


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SLOT = re.compile(r"\{(\w+)\}")
_ALWAYS = ("input", "options")


class _Entry(Record, frozen=True):
    """An item or an example as the file has it."""

    input: str
    reference: str | tuple[str, ...]
    id: str = ""
    wrong: tuple[str, ...] = ()
    group: str = ""
    proof: str = ""  # what shows that the reference is right; for the tests, no part of the task


class _File(Record, frozen=True):
    title: str
    description: str
    edition: str
    metric: str
    prompt: str
    plain: str
    item: tuple[_Entry, ...]
    shot: tuple[_Entry, ...] = ()
    group: dict[str, dict[str, str]] = {}  # noqa: RUF012 (a Record copies it)
    begin: str = ""
    max_tokens: int = 32


def read(path: Path) -> EvalTask:
    """The task of a file, named after it. Raises BadInput."""
    return _TaskReader(path).task()


class _TaskReader:
    """Reads one file into a task; as a class, it can name the place of every mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = msgspec.convert(toml_of(path), _File, strict=True)
        except msgspec.ValidationError as error:
            words, unknown = str(error), re.search(r"unknown field `([^`]+)`", str(error))
            if unknown:
                known = sorted({*_File.__struct_fields__, *_Entry.__struct_fields__})
                words = f"unknown key '{unknown[1]}'.{did_you_mean(unknown[1], known)}"
            raise BadInput(path, words, toml_line_of(path, error), code=code_of(error)) from None

    def task(self) -> EvalTask:
        file, name = self.file, self.path.stem
        if not _NAME.fullmatch(name):
            self._fail(f"a task is named after its file, and '{name}' may have only a-z, 0-9, - and _")
        try:
            metrics.load(file.metric)
        except HeredityError as error:
            self._fail(str(error), "metric", code="unknown-name")
        if file.max_tokens < 1:
            self._fail("`max_tokens` must be at least 1", "max_tokens", code="bad-setting")
        if not file.item:
            self._fail("has no items: write at least one [[item]]")
        shots = tuple(self._item("shot", n, entry) for n, entry in enumerate(file.shot))
        items = tuple(self._item("item", n, entry) for n, entry in enumerate(file.item))
        seen: set[str] = set()
        shown = {(shot.group, shot.input) for shot in shots}
        for n, item in enumerate(items):
            if item.id in seen or not _NAME.fullmatch(item.id):
                what = "is used twice" if item.id in seen else "may have only a-z, 0-9, - and _"
                code = "name-twice" if item.id in seen else ""
                self._fail(f"the id '{item.id}' {what}", head="item", n=n, code=code)
            seen.add(item.id)
            if (item.group, item.input) in shown:
                self._fail(f"item '{item.id}' is also an example", head="item", n=n)
            for key in ("prompt", "plain", "begin"):
                self._verify_slots(key, getattr(self.file, key), item)
        return EvalTask(
            name, file.title, file.description, file.edition, file.metric, file.prompt, file.plain, items,
            shots, file.group, file.begin, file.max_tokens,
        )  # fmt: skip

    def _item(self, kind: str, n: int, entry: _Entry) -> TaskItem:
        """The position of the right option follows from `n`, so that no position is right more often."""
        metric = metrics.load(self.file.metric)
        if metric.ASKS == "match":
            entry = self._with_images(entry, toml_line(self.path, head=kind, index=n))
        references = (entry.reference,) if isinstance(entry.reference, str) else entry.reference
        name, options = entry.id or f"{kind}-{n + 1}", tuple[str, ...]()
        why = code = ""
        if not references or not all(text.strip() for text in references):
            why, code = " has no reference, or an empty one", "missing-key"
        elif entry.wrong:
            # Shifted by one each round: every place is right equally often, also among every second item.
            place = (n + n // (len(entry.wrong) + 1)) % (len(entry.wrong) + 1)
            options = (*entry.wrong[:place], references[0], *entry.wrong[place:])
        if len(set(options)) < len(options):
            why, code = " has an option twice", "name-twice"
        elif not why and not options and metric.NEEDS_OPTIONS:
            why, code = (
                f" has no `wrong` options, and '{self.file.metric}' chooses among options", "missing-key",
            )  # fmt: skip
        elif not why and entry.group and entry.group not in self.file.group:
            near = nearest(entry.group, self.file.group)
            hint = f"Did you mean '{near}'?" if near else f"Write a table [group.{entry.group}]."
            why, code = f": no group named '{entry.group}'. {hint}", "unknown-name"
        if why:
            self._fail(f"{kind} '{name}'{why}", head=kind, n=n, code=code)
        return TaskItem(name, entry.input.strip("\n"), references, options, entry.group)

    def _with_images(self, entry: _Entry, line: int) -> _Entry:
        """The entry with its images read."""
        references = (entry.reference,) if isinstance(entry.reference, str) else entry.reference
        right, wrong = (
            tuple(opened(text, self.path, line) for text in some) for some in (references, entry.wrong)
        )
        shown = opened(entry.input, self.path, line)
        return msgspec.structs.replace(entry, input=shown, reference=right, wrong=wrong)

    def _verify_slots(self, key: str, template: str, item: TaskItem) -> None:
        known = (*_ALWAYS, *self.file.group.get(item.group, ()))
        if unknown := next((slot for slot in _SLOT.findall(template) if slot not in known), ""):
            near = nearest(unknown, known)
            hint = f"Did you mean '{{{near}}}'?" if near else f"Known: {', '.join(known)}."
            what = f"unknown slot '{{{unknown}}}' for item '{item.id}'. {hint}"
            self._fail(what, key, code="unknown-name")
        if "{input}" not in template + self.file.begin * (key == "prompt") and key != "begin":
            self._fail(f"`{key}` lacks the slot {{input}}", key, code="missing-key")

    def _fail(self, message: str, key: str = "", *, head: str = "", n: int = 0, code: str = "") -> NoReturn:
        line = toml_line(self.path, key, head=head, index=n) if key or head else 0
        raise BadInput(self.path, message, line, code=code)


class TaskItem(Record, frozen=True):
    """One question with its right answers."""

    id: str
    input: str
    references: tuple[str, ...]  # every right answer
    options: tuple[str, ...] = ()  # the choices as they are shown, with the right one among them
    group: str = ""  # its values fill the template, and its examples are shown


class EvalTask(Record, frozen=True):
    """Items of one kind. Scores under different digests are of different tasks."""

    name: str
    title: str
    description: str
    edition: str
    metric: str  # a file of metrics/
    prompt: str  # the user's message; {slots} are `input`, `options` and the values of the item's group
    plain: str  # for a model without a chat template: the text that the answer continues
    items: tuple[TaskItem, ...]
    shots: tuple[TaskItem, ...] = ()  # examples; a group has its own
    groups: dict[str, dict[str, str]] = {}  # noqa: RUF012 (a Record copies it)
    begin: str = ""  # in a chat, the beginning of the assistant's turn; scored options continue it
    max_tokens: int = 32

    @property
    def digest(self) -> str:
        """A digest over everything in this edition."""
        return digest(self)

    @property
    def n_shots(self) -> int:
        """The number of examples that every item has."""
        return min(sum(shot.group == item.group for shot in self.shots) for item in self.items)


def names() -> list[str]:
    """The tasks of the package."""
    return registry.names("evals.tasks", ".toml")


def load(wanted: Sequence[str] = (), has_pictures: bool = False) -> list[EvalTask]:
    """The tasks with these names and .toml files, each once, in order; without any, every text task.

    has_pictures: include image tasks if no names are given.

    Raises UnknownName with the nearest, BadInput with file and line.
    """

    by_name: dict[str, EvalTask] = {}
    for name in dict.fromkeys(wanted or names()):
        if name.endswith(".toml"):
            task = read(Path(name))
            if task.name in (*names(), *by_name):
                raise BadInput(
                    name,
                    f"there is a task named '{task.name}' already; name the file otherwise",
                    code="name-twice",
                )
        elif name in names():
            there = registry.outside("evals.tasks", name)
            task = read(there.path if there else Path(__file__).parent / f"{name}.toml")
        else:
            raise UnknownName("task", name, names(), ", ".join(names()))
        by_name[task.name] = task
    if wanted or has_pictures:
        return list(by_name.values())
    return [task for task in by_name.values() if metrics.load(task.metric).ASKS != "match"]
