"""The kinds of guards, and the record by which a file or a study names one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from heredity.application.retrieval.spec import Retrieval
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
    """A part of a text, by its first character and the one behind its last, and why it was found."""

    start: int
    end: int
    why: str


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
