"""What a spec names: NAME[:VARIANT][+NAME[:VARIANT]...], its parts put together into one conversation.

Promises: the same spec, probe and trial say the same words; parts act in the order in which they stand, but
for a language, which is chosen before anything is said; a spec that cannot work is refused before a study.
Leaves to others: what each part does (the files of this folder).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import msgspec

from heredity.core import registry
from heredity.core.errors import UsageError
from heredity.core.records import Consult, Probe, Request
from heredity.engines import Engine, Open
from heredity.redteam.attacks._context import PLAIN, How
from heredity.redteam.attacks._part import AttackPart, Keep, Turns


class Attack:
    """A strategy, and what is laid over each of its turns from left to right. Called, a conversation."""

    def __init__(self, parts: tuple[AttackPart, ...]) -> None:
        self.parts = parts
        leads = [part for part in parts if part.kind == "turns"]
        self.lead = leads[0] if leads else AttackPart("direct")
        self.recasts = tuple(part for part in parts if part.kind == "recast")
        self.layers = tuple(part for part in parts if part.kind in ("lay", "rewrite"))
        self.changes = tuple(part for part in parts if part.kind == "prepare")
        self.searches = tuple(part for part in parts if part.searches)
        self._refuse_misfits(leads)

    @property
    def spec(self) -> str:
        """The spec with every variant written out: what a plan stores."""
        return "+".join(part.spec for part in self.parts)

    @property
    def needs_attacker(self) -> bool:
        """Whether it asks an attacker model."""
        return any(part.needs_attacker for part in self.parts)

    @property
    def needs_weights(self) -> bool:
        """Whether it works only on an engine that holds the model's weights."""
        return any(part.needs_weights for part in self.parts)

    def prepared(self, engine: Open, keep: Callable[[str], Keep]) -> Engine:
        """The engine with its model changed by every part that does. `keep` is by the part's spec."""
        changed: Engine = engine
        for part in self.changes:
            changed = part.prepare(cast(Open, changed), keep(part.spec))
        return changed

    def search(self, engine: Open, request: Request, probe: Probe, how: How) -> str:
        """What the part that searches found for the place of MARK in the request."""
        part = self.searches[0]
        return part.search(engine, request, probe, _for(part, self._language(probe, how)))

    def __call__(self, probe: Probe, how: How = PLAIN) -> Turns:
        """The conversation: yields a turn, receives the reply to it."""
        how = self._language(probe, how)
        for part in self.recasts:
            probe = part.recast(probe, _for(part, how))
        turns = self.lead.turns(probe, _for(self.lead, how))
        return self._laid(turns, how) if self.layers else turns

    def queries(self, probe: Probe, how: How = PLAIN) -> int:
        """The most turns that one trial takes. A tool that the model calls adds a request to a turn."""
        return self.lead.queries(probe, _for(self.lead, how))

    def skips(self, probe: Probe, how: How = PLAIN) -> str:
        """Why this probe cannot be asked under this attack; "" where it can."""
        how = self._language(probe, how)
        reasons = (part.skips(probe, _for(part, how)) for part in self.parts)
        return next((f"{self.spec}: {reason}" for reason in reasons if reason), "")

    def _laid(self, turns: Turns, how: How) -> Turns:
        layers = [(part, _for(part, how)) for part in self.layers]
        at, reply = 0, None
        try:
            while True:
                turn = next(turns) if reply is None else turns.send(reply)
                if isinstance(turn, Consult):
                    reply = yield turn
                    continue
                at = 0 if turn.is_fresh else at
                for part, own in layers:
                    turn = part.lay(turn, own, at)
                reply = yield turn
                at += 1
        except StopIteration:
            return
        finally:
            turns.close()

    def _language(self, probe: Probe, how: How) -> How:
        """The wrappers speak the language that the spec chose, else the probe's own."""
        language = self.recasts[0].variant if self.recasts else probe.language
        return how if language == how.language else msgspec.structs.replace(how, language=language)

    def _refuse_misfits(self, leads: list[AttackPart]) -> None:
        spec, first = self.spec, self.parts[0]
        if len(leads) > 1:
            raise UsageError(
                f"Attack '{spec}': '{leads[0].name}' and '{leads[1].name}' both lead.",
                code="attack-two-leaders",
            )
        if leads and leads[0] is not first:
            others = "+".join(part.spec for part in self.parts if part is not leads[0])
            raise UsageError(
                f"Attack '{spec}': '{leads[0].name}' leads the conversation, so it comes first: "
                f"{leads[0].spec}+{others}",
                code="attack-order-first",
            )
        if len(self.recasts) > 1:
            raise UsageError(f"Attack '{spec}' names two languages; choose one.", code="attack-two-languages")
        if len(self.searches) > 1:
            raise UsageError(f"Attack '{spec}' searches twice; choose one.")
        if self.searches and self.searches[0] is not self.layers[-1]:
            raise UsageError(
                f"Attack '{spec}': '{self.searches[0].name}' searches for what stands last, so it comes"
                " last.",
                code="attack-order-last",
            )


def parse(spec: str) -> Attack:
    """The attack that a spec names. Raises UnknownName with the nearest, UsageError for a misfit."""
    parts = []
    for text in spec.split("+"):
        name, colon, variant = text.strip().partition(":")
        if not name or (colon and not variant):
            raise UsageError(
                f"Attack '{spec}' is not of the form NAME[:VARIANT][+NAME[:VARIANT]...].",
                code="attack-malformed",
            )
        _refuse_bare_variant(name)
        parts.append(AttackPart(name, variant if colon else None))
    return Attack(tuple(parts))


def _refuse_bare_variant(name: str) -> None:
    """A variant without its attack is nearer to that than to any attack's name: base64 is encoding:base64."""
    known = registry.names("redteam.attacks")
    if name in known:
        return
    for attack in known:
        if name in getattr(registry.load("redteam.attacks", attack), "variants", ()):
            raise UsageError(
                f"No attack named '{name}'. Did you mean '{attack}:{name}'? List them: heredity attacks",
                code="variant-without-attack",
            )


def _for(part: AttackPart, how: How) -> How:
    return how if how.variant == part.variant else msgspec.structs.replace(how, variant=part.variant)
