"""Asks a guard model, or a judge of the project, whether a text may pass.

    [[guards]]
    kind = "model"
    model = "llama_guard_3"        # or llama_guard_3:MODEL, learned, rubric:MODEL
    sides = ["user", "answer"]

A model has errors of its own, and each text costs a run of it: a study shows its effect and its price.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from heredity.application.guards import Action, GuardFacts, GuardRule, GuardSpan, ModelScore, Side
from heredity.core.errors import EngineFailure, UsageError


class UnreadableReply(EngineFailure):
    """The reply of a guard's model has another form than it should: the guard fails, closed or open."""


class ModelGuard(GuardRule, frozen=True):
    """model: NAME or NAME:MODEL of a guard model, "learned", or "rubric:MODEL".

    sides: the texts that it reads. threshold: the least score, from 0 to 1, of a text that must not pass.
    action: "block", or "redact" the whole text. identity: of the model; whatever runs it fills it in.
    """

    SIDES: ClassVar[tuple[Side, ...]] = ("user", "data", "answer")

    model: str
    sides: tuple[Side, ...] = ("answer",)
    threshold: float = 0.5
    action: Action = "block"
    identity: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of its range."""
        if not self.model.strip():
            raise ValueError("model is empty")
        if not self.sides or len(set(self.sides)) < len(self.sides):
            raise ValueError("sides names each of user, data and answer at most once, and one at least")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, not {self.threshold}")

    @property
    def acts(self) -> Action:
        return self.action

    def find(self, text: str, side: Side, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """Raises UsageError: what runs the guards gives the text to the model, and its score to `spans`."""
        raise UsageError(f"The guard model '{self.model}' is not loaded here.")

    def spans(self, text: str, score: ModelScore) -> Sequence[GuardSpan]:
        """The whole text if its score is at the threshold. Raises UnreadableReply without a score."""
        if score.score is None:
            raise UnreadableReply(f"the reply of '{self.model}' is not readable")
        if score.score < self.threshold:
            return ()
        return [GuardSpan(0, len(text), f"{score.score:.2f} {score.why}".rstrip())]


GUARD = ModelGuard
