"""Guards: checks and rewrites between a user, a model and the outside. Each file here is one kind.

To add a kind, add one file. It defines a struct of its settings, a GuardRule, and names it as
`GUARD`. The struct's fields are the keys that an application's file may give:

    [[guards]]
    kind = "NAME"

Promises: a guard depends on the text and the application only, so a guarded model answers the same again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from heredity.application.retrieval import Retrieval
from heredity.core import registry
from heredity.core.errors import BadArgument, UnknownName, code_of, did_you_mean
from heredity.core.records import Record, Request, Secret, Tool, ToolCall

_NAME = re.compile(r"[\w-]{1,40}")
MODEL_KIND = "model"  # the kind that asks a model
FAILED = ": failed: "  # in a note: the guard raised an error, and the text was blocked
FAILED_OPEN = ": failed open: "  # in a note: the guard raised an error, and the text passed unchecked
Side = Literal["user", "data", "answer"]
Action = Literal["block", "redact"]


class GuardSpec(Record, frozen=True):
    """A guard with its settings, as an application or a plan stores it.

    kind      a file of this folder
    name      what `--guard` and the rows call it; "" is the kind
    is_on     whether it holds for every model; otherwise only where a study names it
    fails     what an error in the guard does: "closed" blocks, "open" lets pass
    settings  of the kind
    """

    kind: str
    name: str = ""
    is_on: bool = True
    fails: Literal["closed", "open"] = "closed"
    settings: dict[str, object] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for a name that rows and options cannot hold."""
        if not _NAME.fullmatch(self.label):
            raise ValueError(f"the guard name {self.label[:40]!r} may have letters, digits, - and _")

    @property
    def label(self) -> str:
        """The name; without one, the kind."""
        return self.name or self.kind


class GuardFacts(NamedTuple):
    """The parts of an application that its guards may use."""

    secrets: Sequence[Secret] = ()
    tools: Sequence[Tool] = ()
    retrieval: Retrieval | None = None


class GuardSpan(NamedTuple):
    """A part of a text: the places where it starts and ends (exclusive), and the reason.

    instead: the words that a redacted text has there; "" for a mark.
    """

    start: int
    end: int
    why: str
    instead: str = ""


def apart(spans: Sequence[GuardSpan]) -> list[GuardSpan]:
    """The spans in order; those that overlap are one, with the words of the first."""
    guard_spans: list[GuardSpan] = []
    for span in sorted(spans):
        if guard_spans and span.start < guard_spans[-1].end:
            guard_spans[-1] = guard_spans[-1]._replace(end=max(guard_spans[-1].end, span.end))
        else:
            guard_spans.append(span)
    return guard_spans


class GuardRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of guard; its fields are its settings. A subclass overrides what it does.

    SIDES      the texts that `find` reads: the user's, data from outside (documents, tools), answers
    PLACES     settings that say where something lies; others say what it is, and name a guarded model
    RETRIEVES  whether `prepare` adds passages, which it then sets as the request's `retrieved`
    """

    SIDES: ClassVar[tuple[Side, ...]] = ()
    PLACES: ClassVar[frozenset[str]] = frozenset()
    RETRIEVES: ClassVar[bool] = False

    @classmethod
    def completed(cls, settings: dict[str, object], folder: Path) -> dict[str, object]:  # noqa: ARG003
        """The settings with the content of the files that they name. Raises BadArgument and BadInput.

        folder: that of the application's file, to which names are relative.
        """
        return settings

    def prepare(self, request: Request, facts: GuardFacts) -> Request:  # noqa: ARG002
        """The request that the model gets instead. It depends on nothing but its arguments."""
        return request

    def find(self, text: str, side: Side, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The parts of a text that must not pass, in order and apart. Takes linear time."""
        return ()

    def find_cut(self, text: str, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The parts at the end of an answer that only its limit on tokens kept from being a finding."""
        return ()

    def forbids(self, call: ToolCall, facts: GuardFacts) -> str:  # noqa: ARG002
        """Why a call must not be made; "" if it may."""
        return ""

    @property
    def acts(self) -> Action:
        """Whether a text with a finding is blocked, or loses the parts."""
        return "block"


class ReadText(NamedTuple):
    """A text that a guard's model reads. `question`: what an answer answers, without data; "" for others."""

    side: Side
    question: str
    text: str


class ModelScore(NamedTuple):
    """How likely a text must not pass, from 0 to 1, and why. None: the model's reply is not readable."""

    score: float | None
    why: str = ""


class GuardReader(Protocol):
    """A loaded model that reads texts for guards."""

    def scores(self, texts: Sequence[ReadText]) -> list[ModelScore]:
        """One score for each text, in order. A score depends on its text only."""


class GuardReaders(Protocol):
    """The models of guards, each loaded once. A study or a server hands them to its guards."""

    def identify(self, name: str, sides: Sequence[Side]) -> str:
        """A digest of all that decides the scores: weights, template, version. Loads nothing.

        Raises UnknownName, Unavailable for a model that is not in the store, and UsageError for a model that
        cannot read texts of these sides.
        """

    def reader(self, name: str) -> GuardReader:
        """The model, loaded. Raises as `identify`, and what its engine raises."""

    def close(self) -> None:
        """Free the models."""


@runtime_checkable
class GuardModule(Protocol):
    """A file of this folder: it names its kind as `GUARD`."""

    GUARD: type[GuardRule]


FOLDER = "application.guards"
_OWN = {"kind", "name", "is_on", "fails"}  # keys of a table that are not settings of its kind


def kinds() -> list[str]:
    """The kinds of guards, sorted."""
    return registry.names(FOLDER)


@cache
def guard_class(kind: str) -> type[GuardRule]:
    """The struct of a kind. Raises UnknownName with the nearest kind."""
    return registry.load_as(GuardModule, FOLDER, kind).GUARD


def load_guard(spec: GuardSpec) -> GuardRule:
    """The guard of a stored spec. Raises UnknownName for its kind, BadArgument for its settings."""
    kind = guard_class(spec.kind)
    try:
        return msgspec.convert(spec.settings, kind)
    except (msgspec.ValidationError, ValueError) as error:
        unknown = sorted(set(spec.settings) - set(kind.__struct_fields__))
        known = ", ".join(sorted(kind.__struct_fields__)) or "none"
        text = (
            f"unknown key '{unknown[0]}'.{did_you_mean(unknown[0], kind.__struct_fields__)}"
            if unknown
            else ""
        )
        raise BadArgument(
            f"guard '{spec.label}': {text or str(error)} Its settings: {known}",
            code=code_of(error),
            key="guards",
        ) from None


def content(specs: Sequence[GuardSpec]) -> list[GuardSpec]:
    """The guards without the places of their files: what a digest of them covers.

    Of a kind from outside, it covers the hash of its file, too.
    """
    bare = []
    for spec in specs:
        settings = {k: v for k, v in spec.settings.items() if k not in guard_class(spec.kind).PLACES}
        if there := registry.outside(FOLDER, spec.kind):
            settings["plugin"] = there.sha256
        bare.append(msgspec.structs.replace(spec, settings=settings))
    return bare


def parse_guard(table: object, folder: Path) -> GuardSpec:
    """The guard that a table `[[guards]]` of a file in `folder` describes.

    Raises BadArgument with the key at fault, and BadInput for a file that a setting names.
    """
    if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
        raise BadArgument('a guard needs `kind`, such as kind = "links"', key="guards")
    own = {key: value for key, value in table.items() if key in _OWN}
    settings = {key: value for key, value in table.items() if key not in _OWN}
    try:
        settings = guard_class(table["kind"]).completed(settings, folder)
        spec = msgspec.convert({**own, "settings": settings}, GuardSpec)
        load_guard(spec)
    except UnknownName as error:
        raise BadArgument(str(error), code=error.code, key="guards") from None
    except msgspec.ValidationError as error:
        raise BadArgument(f"a guard of kind '{table['kind']}': {error}", key="guards") from None
    return spec


def chosen(names: str, own: Sequence[GuardSpec]) -> tuple[GuardSpec, ...]:
    """The guards that a study switches on together: "links", or "links+secrets".

    own: those of the application. A name is one of theirs, or a kind with its defaults. Raises UnknownName.
    """
    named = {spec.label: spec for spec in own}
    guards = []
    for name in names.split("+"):
        if name not in named and name not in kinds():
            raise UnknownName("guard", name, [*named, *kinds()], ", ".join(dict.fromkeys([*named, *kinds()])))
        spec = named.get(name) or GuardSpec(name, name.rpartition(".")[2] if "." in name else "")
        if (there := registry.outside(FOLDER, name)) and isinstance(there.plugin, GuardRule):
            spec = msgspec.structs.replace(spec, settings=msgspec.to_builtins(there.plugin))
        guards.append(msgspec.structs.replace(spec, is_on=True))
        load_guard(guards[-1])
    return tuple(guards)
