"""Reads an attack spec, NAME[:VARIANT][+NAME[:VARIANT]...], and joins its parts into one conversation.

Promises: the same spec, probe and trial give the same words. Parts act in the order in which they are
written, except a language, which is chosen first. A spec that cannot work is refused before a study.
Leaves to others: the effect of each part (the files of this folder).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from types import ModuleType
from typing import cast

import msgspec

from heredity import engines
from heredity.application.spec import Application
from heredity.core import registry
from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import Consult, Message, Model, Probe, Reply, Request, Turn
from heredity.engines.protocols import Engine, WhiteBoxEngine
from heredity.redteam.attacks._context import DEFAULT_CONTEXT, AttackContext, context_for

Turns = Generator[Turn | Consult, Reply, None]
Keep = Callable[[Callable[[], str]], str]  # what was kept of an earlier run, else what the function makes

KINDS = ("turns", "recast", "lay", "rewrite", "prepare")  # a file has exactly one of these


class AttackPart:
    """An attack's file and the variant of it that a spec names; "" if the file has none."""

    def __init__(self, name: str, variant: str | None = None) -> None:
        self.name = name
        self.module: ModuleType = registry.load("redteam.attacks", name)
        self.variant = self._resolved(variant)

    @property
    def spec(self) -> str:
        """NAME:VARIANT, or NAME if the file has no variants."""
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
        """Whether it searches the model's weights for text to apply to a turn."""
        return hasattr(self.module, "search")

    @property
    def needs_weights(self) -> bool:
        """Whether it works only on an engine that holds the model's weights."""
        return self.searches or self.kind == "prepare"

    def prepare(self, engine: WhiteBoxEngine, keep: Keep) -> Engine:
        """The engine with its model changed."""
        return cast(Engine, self.module.prepare(engine, keep))

    def search(self, engine: WhiteBoxEngine, request: Request, probe: Probe, context: AttackContext) -> str:
        """The text that it found for the place of MARK in a request."""
        return str(self.module.search(engine, request, probe, context))

    def turns(self, probe: Probe, context: AttackContext) -> Turns:
        """The conversation of a strategy."""
        return cast("Turns", self.module.turns(probe, context))

    def queries(self, probe: Probe, context: AttackContext) -> int:
        """The maximum number of turns that a strategy takes for this probe."""
        return int(self.module.queries(probe, context))

    def recast(self, probe: Probe, context: AttackContext) -> Probe:
        """The probe in other words."""
        return cast(Probe, self.module.recast(probe, context))

    def skips(self, probe: Probe, context: AttackContext) -> str:
        """Why this probe cannot be asked under this part; "" if it can."""
        return str(self.module.skips(probe, context)) if hasattr(self.module, "skips") else ""

    def lay(self, turn: Turn, context: AttackContext, at: int) -> Turn:
        """Turn number `at` of its conversation, with this part applied to it."""
        if self.kind == "lay":
            return cast(Turn, self.module.lay(turn, context, at))
        text, before = self.module.rewrite(turn.text, context), turn.before
        if before:
            before = tuple(self._rewritten(message, context) for message in before)
        return msgspec.structs.replace(turn, text=text, before=before)

    def _rewritten(self, message: Message, context: AttackContext) -> Message:
        if message.role != "user":
            return message
        return Message("user", self.module.rewrite(message.content, context))

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


class Attack:
    """A strategy, and the parts applied to each of its turns in order. Calling it gives a conversation."""

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

    def prepared(self, engine: WhiteBoxEngine, keep: Callable[[str], Keep]) -> Engine:
        """The engine with its model changed by every part that does. `keep` is by the part's spec."""
        changed: Engine = engine
        for part in self.changes:
            changed = part.prepare(cast(WhiteBoxEngine, changed), keep(part.spec))
        return changed

    def search(self, engine: WhiteBoxEngine, request: Request, probe: Probe, context: AttackContext) -> str:
        """The text that the searching part found for the place of MARK in the request."""
        part = self.searches[0]
        return part.search(engine, request, probe, _for(part, self._language(probe, context)))

    def __call__(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> Turns:
        """The conversation: yields a turn, receives the reply to it."""
        context = self._language(probe, context)
        for part in self.recasts:
            probe = part.recast(probe, _for(part, context))
        turns = self.lead.turns(probe, _for(self.lead, context))
        return self._laid(turns, context) if self.layers else turns

    def queries(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> int:
        """The maximum number of turns of one trial. A tool that the model calls adds a request to a turn."""
        return self.lead.queries(probe, _for(self.lead, context))

    def skips(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> str:
        """Why this probe cannot be asked under this attack; "" if it can."""
        context = self._language(probe, context)
        reasons = (part.skips(probe, _for(part, context)) for part in self.parts)
        return next((f"{self.spec}: {reason}" for reason in reasons if reason), "")

    def _laid(self, turns: Turns, context: AttackContext) -> Turns:
        layers = [(part, _for(part, context)) for part in self.layers]
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

    def _language(self, probe: Probe, context: AttackContext) -> AttackContext:
        """The wrappers use the language that the spec chose, or else the probe's own."""
        language = self.recasts[0].variant if self.recasts else probe.language
        return (
            context if language == context.language else msgspec.structs.replace(context, language=language)
        )

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
    """A variant without its attack suggests that attack, not a similar name: base64 is encoding:base64."""
    known = registry.names("redteam.attacks")
    if name in known:
        return
    for attack in known:
        if name in getattr(registry.load("redteam.attacks", attack), "variants", ()):
            raise UsageError(
                f"No attack named '{name}'. Did you mean '{attack}:{name}'? List them: heredity attacks",
                code="variant-without-attack",
            )


def _for(part: AttackPart, context: AttackContext) -> AttackContext:
    return (
        context if context.variant == part.variant else msgspec.structs.replace(context, variant=part.variant)
    )


_NO_LIMIT = 64  # replies of a conversation: the most that an application may allow


def check_attacker(laid: Sequence[Attack], *, is_there: bool) -> None:
    """Raise UsageError if an attack lacks its attacker model, or if no attack uses the one given."""
    asking = [attack.spec for attack in laid if attack.needs_attacker]
    if asking and not is_there:
        raise UsageError(
            f"Attack '{asking[0]}' has a model write its words; name it: --attacker MODEL",
            code="attacker-missing",
        )
    if is_there and not asking:
        raise UsageError(
            "No attack of this study asks an attacker model: leave --attacker out.", code="attacker-unused"
        )


def unsupported(laid: Sequence[Attack], models: Sequence[Model]) -> list[tuple[str, str]]:
    """("*", reason) for each attack that cannot access a model's weights; its trials are error rows."""
    return [
        ("*", f"{why_unsupported(attack, engines.choose(model))} ('{model.name}')")
        for model in models
        for attack in laid
        if attack.needs_weights and not engines.holds_weights(model)
    ]


def warnings(
    laid: Sequence[Attack], probes: Sequence[Probe], application: Application, samples: int
) -> list[str]:
    """Warnings about attacks that can run but do not measure what they seem to; one line each."""
    context, found = context_for(application), []
    free = msgspec.structs.replace(context, max_turns=_NO_LIMIT)
    for attack in laid:
        wanted = max((attack.queries(probe, free) for probe in probes), default=0)
        if any(attack.queries(probe, context) < attack.queries(probe, free) for probe in probes):
            found.append(
                f"{attack.spec} takes up to {wanted} turns, and the application allows {context.max_turns} "
                "(max_turns): it is cut short."
            )
    if samples > 1 and application.decoding.temperature == 0:
        same = [attack.spec for attack in laid if probes and not _draws(attack, probes[0], context)]
        if same:
            found.append(
                f"{samples} samples under greedy decoding (temperature 0) are the same words and the same "
                f"answer each time, under {', '.join(same)}. Set a temperature, or ask once."
            )
    return found


def _draws(attack: Attack, probe: Probe, context: AttackContext) -> bool:
    """Whether another sample of an attack has different words, or a randomly sampled answer."""
    if attack.needs_attacker or attack.searches:
        return True
    first = []
    for sample in (0, 1):
        turns = attack(probe, msgspec.structs.replace(context, sample=sample, seed=sample + 1))
        first.append(next(turns))
        turns.close()
    decoding = getattr(first[0], "decoding", None)
    return first[0] != first[1] or (decoding is not None and decoding.temperature > 0)


def why_unsupported(attack: Attack, engine: str) -> str:
    """Why an attack on weights cannot work behind this engine."""
    return f"skipped: {attack.spec} works on weights in the torch engine, and this model is behind '{engine}'"
