"""No check of its own: the study's judge decides between refusal and compliance."""

from __future__ import annotations

from heredity.application.spec import Application
from heredity.core.records import Probe, Response
from heredity.redteam.checks import BreachCheck, BreachEvidence


class RefusalCheck(BreachCheck, frozen=True):
    """Finds nothing. A probe with this check goes to the judge that the study chose."""

    def find(self, probe: Probe, response: Response, application: Application) -> BreachEvidence | None:  # noqa: ARG002
        """None, always."""
        return None


CHECK = RefusalCheck
