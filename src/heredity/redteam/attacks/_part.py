"""One part of an attack's spec: a file of this folder with a variant, read through one door.

Promises: a file that lacks what the folder's __init__ asks for is a TypeError in the contract test, not in
a study; an unknown variant is answered with the nearest known one.
Leaves to others: how parts are put together (_spec.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cached_property
from types import ModuleType
from typing import cast

import msgspec

from heredity.core import registry
from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import Consult, Message, Probe, Reply, Request, Turn
from heredity.engines import Engine, Open
from heredity.redteam.attacks._context import How

Turns = Generator[Turn | Consult, Reply, None]
Keep = Callable[[Callable[[], str]], str]  # what was kept of an earlier run, else what the function makes

KINDS = ("turns", "recast", "lay", "rewrite", "prepare")  # a file has exactly one of these


class AttackPart:
    """An attack's file and the variant of it that a spec names; "" where the file has none."""

    def __init__(self, name: str, variant: str | None = None) -> None:
        self.name = name
        self.module: ModuleType = registry.load("redteam.attacks", name)
        self.variant = self._resolved(variant)

    @property
    def spec(self) -> str:
        """NAME:VARIANT, or NAME where the file has no variants."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    @cached_property
    def kind(self) -> str:
        """Which of KINDS the file has."""
        found = [kind for kind in KINDS if hasattr(self.module, kind)]
        if len(found) != 1:
            raise TypeError(f"attacks/{self.name}.py must have exactly one of {', '.join(KINDS)}: {found}")
        return found[0]

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that are listed; the first is the default."""
        return tuple(getattr(self.module, "variants", ()))

    @property
    def needs_attacker(self) -> bool:
        """Whether it asks an attacker model."""
        return bool(getattr(self.module, "NEEDS_ATTACKER", False))

    @property
    def searches(self) -> bool:
        """Whether it searches the model's weights for what it lays over a turn."""
        return hasattr(self.module, "search")

    @property
    def needs_weights(self) -> bool:
        """Whether it works only on an engine that holds the model's weights."""
        return self.searches or self.kind == "prepare"

    def prepare(self, engine: Open, keep: Keep) -> Engine:
        """The engine with its model changed."""
        return cast(Engine, self.module.prepare(engine, keep))

    def search(self, engine: Open, request: Request, probe: Probe, how: How) -> str:
        """What it found for the place of MARK in a request."""
        return str(self.module.search(engine, request, probe, how))

    def turns(self, probe: Probe, how: How) -> Turns:
        """The conversation of a strategy."""
        return cast("Turns", self.module.turns(probe, how))

    def queries(self, probe: Probe, how: How) -> int:
        """The most turns that a strategy takes for this probe."""
        return int(self.module.queries(probe, how))

    def recast(self, probe: Probe, how: How) -> Probe:
        """The probe in other words."""
        return cast(Probe, self.module.recast(probe, how))

    def skips(self, probe: Probe, how: How) -> str:
        """Why this probe cannot be asked under this part; "" where it can."""
        return str(self.module.skips(probe, how)) if hasattr(self.module, "skips") else ""

    def lay(self, turn: Turn, how: How, at: int) -> Turn:
        """The turn, number `at` of its conversation, with this part laid over it."""
        if self.kind == "lay":
            return cast(Turn, self.module.lay(turn, how, at))
        text, before = self.module.rewrite(turn.text, how), turn.before
        if before:
            before = tuple(self._rewritten(message, how) for message in before)
        return msgspec.structs.replace(turn, text=text, before=before)

    def _rewritten(self, message: Message, how: How) -> Message:
        if message.role != "user":
            return message
        return Message("user", self.module.rewrite(message.content, how))

    def _resolved(self, variant: str | None) -> str:
        if hasattr(self.module, "resolve"):  # an open set of variants: a number, a file
            try:
                return str(self.module.resolve(variant or self.variants[0]))
            except ValueError as error:
                raise UsageError(f"Attack '{self.name}:{variant}': {error}", code="bad-variant") from None
        if variant is None:
            return self.variants[0] if self.variants else ""
        if variant not in self.variants:
            known = [f"{self.name}:{v}" for v in self.variants]
            raise UnknownName("attack", f"{self.name}:{variant}", known, "heredity attacks")
        return variant
