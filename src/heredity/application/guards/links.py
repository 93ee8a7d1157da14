"""Takes links to other hosts out of answers: a link, or an image that a page loads, can carry data away.

A host is allowed with its subdomains. Without any, no link passes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from heredity.application.guards.protocols import Action, GuardRule, GuardSpan, Side

if TYPE_CHECKING:
    from heredity.application.spec import Application

_LINK = re.compile(
    r"(?:!?\[[^\]\n]{0,200}\]\(\s{0,4})?(?:[a-z][a-z0-9+.-]{1,15}:|(?<![\w:]))//[^\s<>\"')\]]{1,2000}\)?"
    r"|(?<![\w@./-])www\.[^\s<>\"')\]]{1,2000}"
    r"|\b(?:data|javascript|vbscript):[^\s<>\"')\]]{1,2000}",
    re.IGNORECASE,
)


class LinkGuard(GuardRule, frozen=True):
    """allowed: hosts. action: "redact" the link, or "block" the answer."""

    SIDES: ClassVar[tuple[Side, ...]] = ("answer",)

    allowed: tuple[str, ...] = ()
    action: Action = "redact"

    @property
    def acts(self) -> Action:
        return self.action

    def find(self, text: str, side: Side, application: Application) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The links to hosts that are not allowed."""
        return [
            GuardSpan(match.start(), match.end(), "a link to another host")
            for match in _LINK.finditer(text)
            if not self._is_allowed(match[0])
        ]

    def _is_allowed(self, link: str) -> bool:
        address = link[link.rfind("(") + 1 :].strip()
        if "\\" in address:  # browsers read it as a slash
            return False
        try:
            name = urlsplit(address if "//" in address else f"//{address}").hostname or ""
        except ValueError:
            return False
        name = name.rstrip(".")
        return any(name == each.casefold() or name.endswith(f".{each.casefold()}") for each in self.allowed)


GUARD = LinkGuard
