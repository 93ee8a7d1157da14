"""Adds a text to the system prompt: a study then measures what a prompt changes."""

from __future__ import annotations

from msgspec.structs import replace

from heredity.application.guards import GuardFacts, GuardRule
from heredity.core.records import Message, Request


class InstructionsGuard(GuardRule, frozen=True):
    """text: what is added. An application without a system prompt gets one, in place of the model's own."""

    text: str

    def prepare(self, request: Request, facts: GuardFacts) -> Request:  # noqa: ARG002
        """The request with the text at the end of the system message."""
        if request.messages and request.messages[0].role == "system":
            first, *others = request.messages
            first = replace(first, content=f"{first.content.rstrip()}\n\n{self.text}".lstrip())
            return replace(request, messages=(first, *others))
        system = Message("system", self.text)
        return replace(request, messages=(system, *request.messages), n_shared=request.n_shared + 1)


GUARD = InstructionsGuard
