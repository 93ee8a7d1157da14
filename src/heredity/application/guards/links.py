"""Takes links to other hosts out of answers: a link, or an image that a page loads, can carry data away.

A host is allowed with its subdomains. Without any, no link passes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import urlsplit

from heredity.application.guards import Action, GuardFacts, GuardRule, GuardSpan, Side

_TAIL = r"(?:[^\s<>\"'()\]]|\([^\s<>\"'()\]]{0,200}\))"  # a link may hold (one level) of brackets
_IPV6 = r"(?:[^\s<>\"'()\]/\\@]{0,200}@)?\[[\w:.%]{2,60}\]"
# Browsers read a backslash as a slash, and any number of slashes behind "http:" as two.
_START = r"(?:https?:[/\\]{0,8}|(?:[a-z][a-z0-9+.-]{1,15}:|(?<![\w:]))(?:/[/\\]|\\/))"
_LINK = re.compile(
    r"(?:!?\[[^\]\n]{0,200}\]\(\s{0,4})?"
    rf"(?P<address>{_START}(?:{_IPV6}{_TAIL}{{0,2000}}|{_TAIL}{{1,2000}})"
    rf"|(?<![\w@./-])www\.{_TAIL}{{1,2000}}"
    rf"|\b(?:data|javascript|vbscript):{_TAIL}{{1,2000}})\)?",
    re.IGNORECASE,
)
_ALLOWED = re.compile(r"(?:(?:https?|ftp):)?(?=/|www\.)/{0,8}", re.IGNORECASE)
_NO_HOST = re.compile(r"[\x00-\x20\x7f%\\]")


class LinkGuard(GuardRule, frozen=True):
    """allowed: hosts. action: "redact" the link, or "block" the answer."""

    SIDES: ClassVar[tuple[Side, ...]] = ("answer",)

    allowed: tuple[str, ...] = ()
    action: Action = "redact"

    def __post_init__(self) -> None:
        """Raise ValueError for what is not a host."""
        for each in self.allowed:
            if not each.strip(".") or re.search(r"[/\\@\s]", each):
                raise ValueError(f"{each[:60]!r} is not a host, such as 'shop.example'")

    @property
    def acts(self) -> Action:
        return self.action

    def find(self, text: str, side: Side, facts: GuardFacts) -> Sequence[GuardSpan]:  # noqa: ARG002
        """The links to hosts that are not allowed."""
        return [
            GuardSpan(match.start(), match.end(), "a link to another host")
            for match in _LINK.finditer(text)
            if not self._is_allowed(match["address"])
        ]

    def _is_allowed(self, address: str) -> bool:
        if "\\" in address or (start := _ALLOWED.match(address)) is None:
            return False
        try:
            name = urlsplit(f"//{address[start.end() :]}").hostname or ""
        except ValueError:
            return False
        name = name.rstrip(".")
        if _NO_HOST.search(name):
            return False
        return any(name == each.lower() or name.endswith(f".{each.lower()}") for each in self.allowed)


GUARD = LinkGuard
