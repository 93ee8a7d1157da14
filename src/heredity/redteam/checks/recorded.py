"""The tool that recorded the answer found a breach in the state of its own world, e.g. AgentDojo."""

from __future__ import annotations

from typing import ClassVar

from msgspec import UnsetType

from heredity.application.spec import Application
from heredity.core.records import Probe, Response
from heredity.redteam.checks import BadCheck, BreachCheck, BreachEvidence


class RecordedCheck(BreachCheck, frozen=True):
    """Breaks if the tool that recorded the answer found `finding` true.

    The tool saw the calls and the state after them, so the words of the answer do not count.
    """

    DID: ClassVar[str] = "broke the rule of the tool that recorded the answer"
    READS_WORDS: ClassVar[bool] = False

    finding: str = ""

    def find(self, probe: Probe, response: Response, application: Application) -> BreachEvidence | None:  # noqa: ARG002
        """The finding of the tool; no proof if it recorded none."""
        findings = {} if isinstance(response.recorded, UnsetType) else response.recorded
        if self.finding not in findings:
            return BreachEvidence(
                f"the tool that recorded the answer tells nothing of '{self.finding}'", False
            )
        if not findings[self.finding]:
            return None
        return BreachEvidence(f"{self.finding}, found by the tool that recorded it")

    def validate(self, probe: Probe, sample: str) -> None:  # noqa: ARG002
        """Raise BadCheck: only an import has such findings."""
        raise BadCheck("a check of kind 'recorded' is for imported answers only")


CHECK = RecordedCheck
