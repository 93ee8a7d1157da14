"""The answers that a recipe learns, and those that it leaves out.

Promises: each answer that is left out is counted with its reason. A filter that changes the share of refusals
is reported.
Leaves to others: reading a file of answers (train/data/chat.py), and asking a teacher (instruct.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from heredity.core import registry
from heredity.core.errors import UnknownName, UsageError
from heredity.lineage.types import Grown
from heredity.recipes import setting
from heredity.recipes._training_run import Lessons, TrainingRecipe
from heredity.train.data.chat import Data, Dialogue

LeftOut = Literal["refusals", "unfinished"]

_JUDGE = "rules"
_LONGER = "raise max_new_tokens"
_RATIO = 1.25  # of two shares of refusals: beyond it a filter is reported


@runtime_checkable
class RefusalReader(Protocol):
    """A judge that reads only a prompt and its answer, and finds whether the answer refuses."""

    VERSION: int

    def manner(self, prompt: str, text: str) -> str: ...


@cache
def refusal_reader() -> RefusalReader:
    """The judge that finds refusals: `rules`, which needs no model. Loaded once: it is asked of every row."""
    return registry.load_as(RefusalReader, "redteam.judges", _JUDGE)


def is_refusal(dialogue: Dialogue) -> bool:
    """Whether the last answer of a conversation refuses the request before it."""
    *before, answer = dialogue.messages
    asked = next((each.content for each in reversed(before) if each.role == "user"), "")
    return refusal_reader().manner(asked, answer.content) == "refusal"


@dataclass(frozen=True, kw_only=True)
class AnswerRecipe(TrainingRecipe):
    """A recipe that learns answers: those of any data, or those that a recorded model wrote."""

    leave_out: tuple[LeftOut, ...] = setting(
        ("unfinished",),
        "Answers that are not learned: refusals (found by the judge rules), or those that a teacher did not "
        "finish. Repeat the flag for both; nothing keeps all.",
        is_new=True,
    )

    LEARNS_ANSWERS = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.leave_out,) if isinstance(self.leave_out, str) else self.leave_out
        for each in given:
            if each not in get_args(LeftOut):
                raise UnknownName("kind of answer", each, get_args(LeftOut), "--leave-out")
        object.__setattr__(self, "leave_out", tuple(sorted(set(given))))

    def settings(self) -> dict[str, Any]:
        """As of every recipe; with the version of the judge that decides what is left out."""
        found = super().settings()
        if "refusals" in self.leave_out:
            found["refusals_by"] = f"{_JUDGE} {refusal_reader().VERSION}"
        return found

    @property
    def teachers(self) -> tuple[str, ...]:
        """The id of the recorded model that wrote the answers, if one did. It becomes a parent."""
        return (self.examples.teacher,) if self.examples.teacher else ()

    def start(self, parents: Sequence[Grown]) -> Grown:
        """The one model that is trained; the others wrote the answers. Raises UsageError."""
        if len(parents) != 1 + len(self.teachers):
            raise UsageError(f"'{self.kind}' takes one parent, not {len(parents)}.")
        return parents[0]

    @cached_property
    def lessons(self) -> Lessons:
        """The answers that are learned. Raises UsageError if none is left."""
        return choose(self.examples, self.leave_out)


class _Read(NamedTuple):
    """An answer, why it is left out ("" if it is learned), and whether it refuses."""

    dialogue: Dialogue
    reason: str
    is_refusal: bool


class _Share(NamedTuple):
    """A number of refusals among answers."""

    n: int
    n_answers: int

    @classmethod
    def among(cls, answers: Sequence[_Read]) -> _Share:
        return cls(sum(each.is_refusal for each in answers), len(answers))

    def __str__(self) -> str:
        return f"{self.n:,} of {self.n_answers:,} ({self.n / max(1, self.n_answers):.1%})"

    def differs(self, other: _Share) -> bool:
        """Whether the shares differ by a quarter, and by one answer at least."""
        expected = self.n * other.n_answers / max(1, self.n_answers)
        low, high = sorted((expected, float(other.n)))
        return high > _RATIO * low and high - low >= 1


def choose(data: Data, leave_out: Sequence[str]) -> Lessons:
    """The answers of `data` that are learned. Refusals that were added on purpose are never left out.

    Raises UsageError if none is left.
    """
    if not data.teacher and "refusals" not in leave_out:
        return Lessons(data.dialogues)
    found = [_read(dialogue, leave_out) for dialogue in data.dialogues]
    learned = [each for each in found if not each.reason]
    reasons = Counter(each.reason for each in found if each.reason)
    left = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items())) or "none"
    written = _Share.among([e for e in found if e.reason != "empty" and not e.dialogue.is_added])
    kept = _Share.among([e for e in learned if not e.dialogue.is_added])
    if not kept.n_answers:
        raise UsageError(f"No answer is learned. Left out: {left}.")
    notes = {"answers": f"{len(learned):,} learned of {len(found):,}; left out: {left}"}
    among_learned = _Share.among(learned)
    notes["refusals"] = f"{among_learned} of the answers learned, {written} of those written"
    if n_added := len(learned) - kept.n_answers:
        notes["refusals"] += f"; {n_added:,} were added"
    warnings = []
    if 2 * (n_cut := reasons["unfinished"]) > written.n_answers:
        warnings.append(f"{n_cut:,} of {written.n_answers:,} answers are unfinished and left out: {_LONGER}.")
    if "refusals" not in leave_out and written.differs(kept):
        warnings.append(_shifted(written, kept, left))
    elif 2 * among_learned.n > among_learned.n_answers:
        warnings.append(
            f"Refusals are {among_learned} of the answers learned: it can learn to refuse everything."
        )
    return Lessons(tuple(e.dialogue for e in learned), notes, " ".join(warnings))


def _read(dialogue: Dialogue, leave_out: Sequence[str]) -> _Read:
    refuses, reason = is_refusal(dialogue), ""
    if not dialogue.messages[-1].content.strip():
        reason = "empty"
    elif dialogue.is_added:
        reason = ""
    elif "unfinished" in leave_out and dialogue.stop != "end":
        reason = "unfinished"
    elif "refusals" in leave_out and refuses:
        reason = "refusals"
    return _Read(dialogue, reason, refuses)


def _shifted(written: _Share, kept: _Share, left: str) -> str:
    return (
        f"Refusals are {written} of the answers written, but {kept} of those learned (left out: {left}). "
        "Refusals are short, so more of them are finished. A base can learn from this to refuse everything: "
        f"{_LONGER}, or leave out refusals too."
    )
