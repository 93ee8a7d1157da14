"""The protocols of judges. Every judge is a `Judge`; each other protocol is one thing that some can do.

A judge is a module (rules, learned, checks), or an object that a module's `make` gives (rubric, panel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from heredity.application.spec import Application
from heredity.core.records import Manner, Probe, Response, Verdict
from heredity.engines import Engine

DEFAULT = "rules"
NO_ANSWER = ("empty", "incoherent")
SECRET_REMOVED, TEXT_REMOVED = "secret-removed", "text-removed"  # keys of Response.recorded
Task = Literal["refusal", "harm"]
LabelTask = Literal["refusal", "harm", "breach"]  # breach: what a check finds, and no other judge is asked
# What counts as a positive: the answer refused; or it did what was asked, which was harmful.
POSITIVE: dict[Task, Manner] = {"refusal": "refusal", "harm": "compliance"}
Pair = tuple[str, str]  # what was asked, and the answer


class Models(NamedTuple):
    """The models of a model judge: the id behind a name, and the loaded model."""

    identify: Callable[[str], str]
    load: Callable[[str], Engine]


@runtime_checkable
class Judge(Protocol):
    """Turns a response into a verdict."""

    @property
    def name(self) -> str:
        """The judge's name, as in verdict rows and in the table of quality."""

    @property
    def VERSION(self) -> int:
        """A number that is raised when a verdict changes, and only then."""

    def verdict(self, probe: Probe, response: Response, application: Application) -> Verdict:
        """The verdict on one response; an error row gives outcome None with the error."""


@runtime_checkable
class JudgeFactory(Protocol):
    """A module whose judges take more than a name: `rubric:MODEL`, `panel:A+B`."""

    def make(self, rest: str, models: Models) -> Judge:
        """The judge whose spec has `rest` after its name. Raises UsageError."""


@runtime_checkable
class MannerJudge(Judge, Protocol):
    """A judge that can be wrong, and so can be measured on labelled answers."""

    def manner(self, prompt: str, text: str) -> Manner:
        """How `text` answers `prompt`."""


@runtime_checkable
class ProbabilityJudge(Judge, Protocol):
    """A judge that gives probabilities."""

    def estimate(self, task: Task, pairs: Sequence[Pair]) -> list[float | None]:
        """How likely each answer is a positive; None if its verdict would be `unclear`."""


@runtime_checkable
class BatchJudge(Judge, Protocol):
    """A judge that is faster on many responses at once."""

    @property
    def batch_size(self) -> int:
        """How many responses to give it at a time."""

    def verdicts(self, rows: Sequence[tuple[Probe, Response]], application: Application) -> list[Verdict]:
        """One verdict per response, in order."""


@runtime_checkable
class FittableJudge(Judge, Protocol):
    """A judge whose threshold can be fitted on labels."""

    def fitted(self, task: Task, at: float) -> MannerJudge:
        """The same judge with its threshold at `at`, in log-odds."""


@runtime_checkable
class TrainedJudge(Judge, Protocol):
    """A judge that was trained on answers. On those its quality is overestimated."""

    def n_learned_from(self, texts: Iterable[str]) -> int:
        """How many of these answers it was trained on."""


@runtime_checkable
class IdentifiedJudge(Judge, Protocol):
    """A judge whose verdicts depend on more than its name and version: a model, its settings, its members."""

    @property
    def identity(self) -> str:
        """The settings and members that its verdicts depend on, as a text."""


@runtime_checkable
class PreparedJudge(Judge, Protocol):
    """A judge that needs something which may be missing."""

    def prepare(self) -> None:
        """Raises Unavailable if what it needs is missing."""


@runtime_checkable
class ClosableJudge(Judge, Protocol):
    """A judge that holds a model."""

    def close(self) -> None:
        """Free the model."""
