"""Stops calls of tools that are not allowed: the answer with such a call is replaced.

Without a list, the application's forbidden tools are stopped (`is_forbidden`).
"""

from __future__ import annotations

from heredity.application.guards import GuardFacts, GuardRule
from heredity.core.records import ToolCall


class ToolGuard(GuardRule, frozen=True):
    """allowed: the names of tools that may be called; unset: all that are not forbidden."""

    allowed: tuple[str, ...] | None = None

    def forbids(self, call: ToolCall, facts: GuardFacts) -> str:
        """Why a call is stopped."""
        if self.allowed is not None:
            is_stopped = call.name not in self.allowed
        else:
            is_stopped = any(tool.name == call.name and tool.is_forbidden for tool in facts.tools)
        return f"a call of {call.name[:60]}" if is_stopped else ""


GUARD = ToolGuard
