"""Shows the model no retrieved passage: a study then measures what retrieval adds.

Safety-tuned models were found to be less safe with retrieved documents, harmless ones too (An et al. 2025,
arXiv 2504.18041). A passage of a probe stays, and so do results of tools.
"""

from __future__ import annotations

from msgspec import UNSET
from msgspec.structs import replace

from heredity.application.guards import GuardFacts, GuardRule
from heredity.application.retrieval import without_passages
from heredity.core.records import Request


class WithoutRetrieval(GuardRule, frozen=True):
    """It has no settings."""

    def prepare(self, request: Request, facts: GuardFacts) -> Request:
        """The request without the passages of the application's index, and those planted next to it."""
        retrieval = facts.retrieval
        if retrieval is None:
            return request
        shown = frozenset(each.shown for each in request.planted or ())
        kept = tuple(
            message
            if message.data is UNSET
            else without_passages(message, lambda text: text in shown or retrieval.holds(text))
            for message in request.messages
        )
        return replace(request, messages=kept, retrieved=None)


GUARD = WithoutRetrieval
