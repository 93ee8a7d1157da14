"""Attacks: ways to ask a model a probe. A spec names one: NAME[:VARIANT][+NAME...].

"crescendo@planted_secret" is for one technique. "crescendo+encoding:rot13" is two parts. The part that
leads the conversation comes first ("direct" if none does). The others act on its turns from left to right, so
"roleplay+encoding:base64" encodes the role play.

To add an attack, add one file here that names its attack `ATTACK`. It has `cost`, in words, and the members
of exactly one of these protocols (protocols.py, with an example):

    Strategy          turns, queries     leads a conversation: yields a turn, receives its reply
    TurnTransform     transform          changes a turn
    TextTransform     rewrite            changes every text of the user
    ProbeTransform    recast, skips      words the probe differently first
    ModelTransform    prepare            changes the model itself, in an engine that holds its weights
    PassageDelivery   deliver, undeliverable   shows the probe's passage in another way

An attack with several forms also has `variants`, and `resolve` if they are an open set (a number, a file). A
strategy with `needs_attacker` may yield a question to the study's attacker model; one with `is_adaptive` does
so if there is one, and gets scores. A TurnTransform with `search` searches the model's weights for text.

Promises: an attack changes how a probe is asked, never what counts as a breach. A trial's words depend only
on its spec, probe, seed, sample and the model's replies. It ends within the queries it states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, TypeVar, cast

import msgspec

from heredity import engines
from heredity.application.spec import Application
from heredity.core import registry
from heredity.core.errors import Damaged, UnknownName, UsageError
from heredity.core.records import Consult, Message, Model, Probe, Request, Turn
from heredity.engines import Engine, WhiteBoxEngine
from heredity.redteam import probes
from heredity.redteam.attacks._words import Ladder
from heredity.redteam.attacks.protocols import (
    DEFAULT_CONTEXT,
    KINDS,
    AdaptiveStrategy,
    AttackerStrategy,
    AttackFile,
    AttackPart,
    Keep,
    ModelTransform,
    OpenVariants,
    PassageDelivery,
    ProbeTransform,
    SearchedDelivery,
    Strategy,
    TextTransform,
    Turns,
    TurnTransform,
    Variants,
    WeightSearch,
)
from heredity.redteam.attacks.protocols import MARK as MARK
from heredity.redteam.attacks.protocols import AttackContext as AttackContext
from heredity.redteam.attacks.protocols import TriggerWanted as TriggerWanted

FOLDER = "redteam.attacks"
# Names of techniques or globs; what is only hex digits is the digest of a file (suffix.py).
_SCOPED = re.compile(r"(.+)@(?![0-9a-f]{8,}$)([\w*?\[\]-]+(?:,[\w*?\[\]-]+)*)", re.DOTALL)
P = TypeVar("P", bound=AttackPart)
T = TypeVar("T")
Transform = Callable[[Turn, AttackContext, int], Turn]


def load_part(name: str) -> AttackPart:
    """The attack of a file. Raises UnknownName with the nearest, Unavailable if a member is missing."""
    attack = registry.load_as(AttackFile, FOLDER, name).ATTACK
    if sum(isinstance(attack, kind) for kind in KINDS) == 1:
        return attack
    registry.forget(FOLDER, name)
    has, forms = set(dir(attack)), {kind: registry.members(kind) for kind in KINDS}
    kinds = "; ".join(f"{kind.__name__} ({', '.join(own)})" for kind, own in forms.items())
    shared = sorted({member for own in forms.values() for member in own} & has)
    begun = [own for own in forms.values() if own.keys() & has - {"cost"}] or [{"cost": "cost: str"}]
    lacks = [f"`{form}`" for own in begun for member, form in own.items() if member not in has]
    raise registry.broken(
        FOLDER, name,
        f"must have all members of exactly one of these: {kinds}. "
        f"It has {', '.join(shared) or 'none of them'}. "
        f"{'It lacks ' if lacks else ''}{', '.join(lacks)}{'. ' if lacks else ''}See {registry.GUIDE}",
    )  # fmt: skip


def variants_of(attack: AttackPart) -> tuple[str, ...]:
    """The variants that an attack lists; the first is the default."""
    return attack.variants if isinstance(attack, Variants) else ()


@dataclass(frozen=True)
class SpecPart(Generic[P]):
    """A part of a spec: an attack and its variant; "" if it has none."""

    name: str
    attack: P
    variant: str

    @property
    def spec(self) -> str:
        """NAME:VARIANT, or NAME if the attack has no variants."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that are listed; the first is the default."""
        return variants_of(self.attack)

    def context(self, context: AttackContext) -> AttackContext:
        """The context with this part's variant."""
        if context.variant == self.variant:
            return context
        return msgspec.structs.replace(context, variant=self.variant)


class _Absent:
    """An attack of a saved plan whose package or code is not here: its study can be read."""

    cost, variants = "", ("",)

    def resolve(self, variant: str) -> str:
        return variant

    def rewrite(self, text: str, context: AttackContext) -> str:  # noqa: ARG002
        raise UsageError("An attack of this study is not here: give the object again.", code="unknown-name")


def _part(name: str, variant: str | None = None, absent: Collection[str] = ()) -> SpecPart[AttackPart]:
    attack = _Absent() if name in absent else load_part(name)
    known = variants_of(attack)
    if isinstance(attack, OpenVariants):
        try:
            variant = attack.resolve(variant or known[0])
        except ValueError as error:
            raise UsageError(f"Attack '{name}:{variant}': {error}") from None
    elif variant is not None and not known:
        raise UsageError(
            f"The attack '{name}' has no variants: write '{name}', not '{name}:{variant}'.",
            code="unknown-name",
        )
    elif variant is not None and variant not in known:
        raise UnknownName("attack", f"{name}:{variant}", [f"{name}:{v}" for v in known], "heredity attacks")
    return SpecPart(name, attack, (known[0] if known else "") if variant is None else variant)


def _that_are(kind: type[P], parts: Sequence[SpecPart[AttackPart]]) -> tuple[SpecPart[P], ...]:
    """Those parts whose attack is of a kind."""
    return tuple(SpecPart(p.name, p.attack, p.variant) for p in parts if isinstance(p.attack, kind))


class Attack:
    """A strategy, and the parts applied to each of its turns in order. Calling it gives a conversation."""

    def __init__(self, parts: tuple[SpecPart[AttackPart], ...], scope: tuple[str, ...] = ()) -> None:
        self.parts, self.scope = parts, scope
        leads = _that_are(Strategy, parts)
        self.lead = leads[0] if leads else _that_are(Strategy, [_part("direct")])[0]
        self.recasts = _that_are(ProbeTransform, parts)
        self.deliveries = _that_are(PassageDelivery, parts)
        self.searched = _that_are(SearchedDelivery, parts)
        self.layers = tuple((p, transform) for p in parts if (transform := _transform(p.attack)) is not None)
        self.changes = _that_are(ModelTransform, parts)
        self.searches = _that_are(WeightSearch, parts)
        # The spec with every variant written out: what a plan stores.
        self.spec = "+".join(part.spec for part in parts) + (f"@{','.join(scope)}" if scope else "")
        self.needs_attacker = any(part.attack.needs_attacker for part in _that_are(AttackerStrategy, parts))
        adaptive = _that_are(AdaptiveStrategy, parts)
        self.is_adaptive = any(part.attack.is_adaptive for part in adaptive)
        self.has_steps = isinstance(self.lead.attack, Ladder)  # before the demand, in its own words
        # Whether it works only on an engine that holds the model's weights.
        self.needs_weights = bool(self.searches or self.changes)
        spec, first = self.spec, self.parts[0]
        if len(leads) > 1:
            raise UsageError(f"Attack '{spec}': '{leads[0].name}' and '{leads[1].name}' both lead.")
        if leads and leads[0] != first:
            others = "+".join(part.spec for part in self.parts if part != leads[0])
            raise UsageError(
                f"Attack '{spec}': '{leads[0].name}' leads the conversation, so it comes first: "
                f"{leads[0].spec}+{others}"
            )
        if len(self.recasts) > 1:
            raise UsageError(f"Attack '{spec}' names two languages; choose one.")
        if len(self.deliveries) > 1:
            raise UsageError(f"Attack '{spec}' delivers the passage twice; choose one.")
        if len(self.searches) > 1:
            raise UsageError(f"Attack '{spec}' searches twice; choose one.")
        if self.searches and self.searches[0] != self.layers[-1][0]:
            raise UsageError(
                f"Attack '{spec}': '{self.searches[0].name}' searches for what stands last, so it comes last."
            )

    def covers(self, probe: Probe) -> bool:
        """Whether the attack is for this probe: a breach-seeking one of the techniques named, if any are."""
        if not self.scope:
            return True
        return probe.kind == "breach" and any(fnmatchcase(probe.technique, name) for name in self.scope)

    def prepared(self, engine: WhiteBoxEngine, keep: Callable[[str], Keep]) -> Engine:
        """The engine with its model changed by every part that does. `keep` is by the part's spec."""
        changed: Engine = engine
        for part in self.changes:
            changed = part.attack.prepare(cast(WhiteBoxEngine, changed), keep(part.spec))
        return changed

    def search(self, engine: WhiteBoxEngine, request: Request, probe: Probe, context: AttackContext) -> str:
        """The text that the searching part found for the place of MARK in the request."""
        part = self.searches[0]
        return part.attack.search(engine, request, probe, part.context(self._language(probe, context)))

    def __call__(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> Turns:
        """The conversation: yields a turn, receives the reply to it."""
        context = self._language(probe, context)
        for part in self.recasts:
            probe = _returned(part.name, part.attack.recast(probe, part.context(context)), Probe)
        turns: Turns = self.lead.attack.turns(probe, self.lead.context(context))
        return self._transformed(_returned(self.lead.name, turns, Generator), context)

    def delivered(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> Probe:
        """The probe as the application shows it: its passage may be delivered in another way."""
        for part in self.deliveries:
            probe = _returned(part.name, part.attack.deliver(probe, part.context(context)), Probe)
        return probe

    def wanted(self, probe: Probe) -> tuple[TriggerWanted, ...]:
        """The searches on the embedding model of the index for this probe; () for none."""
        if not self.covers(probe):
            return ()
        own = ((part.attack, part.context(DEFAULT_CONTEXT)) for part in self.searched)
        return tuple(each for attack, context in own for each in attack.wanted(probe, context))

    def queries(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> int:
        """The maximum number of turns of one trial. A tool that the model calls adds a request to a turn."""
        if not self.covers(probe):
            return 0
        return self.lead.attack.queries(probe, self.lead.context(context))

    def skips(self, probe: Probe, context: AttackContext = DEFAULT_CONTEXT) -> str:
        """Why this probe cannot be asked under this attack; "" if it can, or if it is not to be."""
        if not self.covers(probe):
            return ""
        context = self._language(probe, context)
        reasons = [part.attack.skips(probe, part.context(context)) for part in self.recasts]
        reasons += [part.attack.undeliverable(probe, part.context(context)) for part in self.deliveries]
        return next((f"{self.spec}: {reason}" for reason in reasons if reason), "")

    def _transformed(self, turns: Turns, context: AttackContext) -> Turns:
        layers = [(part.name, transform, part.context(context)) for part, transform in self.layers]
        at, reply = 0, None
        try:
            while True:
                turn = next(turns) if reply is None else turns.send(reply)
                if isinstance(turn, Consult):
                    reply = yield turn
                    continue
                turn = _returned(self.lead.name, turn, Turn)
                at = 0 if turn.is_fresh else at
                for name, transform, own in layers:
                    turn = _returned(name, transform(turn, own, at), Turn)
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


def _returned(name: str, value: T, kind: type[T]) -> T:
    """The value that an attack returned. Raises Unavailable for another type, which no model caused."""
    wrong: object = value.text if isinstance(value, Turn) else "" if isinstance(value, kind) else value
    if isinstance(wrong, str) and isinstance(value, kind):
        return value
    wanted = "str" if isinstance(value, Turn) else kind.__name__
    raise registry.broken(FOLDER, name, f"returned {wrong!r:.80}, where {wanted} is expected")


def _transform(attack: AttackPart) -> Transform | None:
    """How an attack changes a turn, or all texts of the user in it; None for one that does not."""
    if isinstance(attack, TurnTransform):
        return attack.transform
    if not isinstance(attack, TextTransform):
        return None

    def transform(turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG001
        before = tuple(
            Message("user", attack.rewrite(each.content, context)) if each.role == "user" else each
            for each in turn.before
        )
        return msgspec.structs.replace(turn, text=attack.rewrite(turn.text, context), before=before)

    return transform


def names() -> list[str]:
    """The names of the available attacks."""
    return registry.names(FOLDER)


def split_scope(spec: str) -> tuple[str, tuple[str, ...]]:
    """A spec without its scope, and the techniques (names or globs) that it is for; () for all probes."""
    scoped = _SCOPED.fullmatch(spec)
    unscoped, techniques = (scoped[1], scoped[2]) if scoped else (spec, "")
    return unscoped, tuple(dict.fromkeys(name for name in techniques.split(",") if name))


def named(spec: str) -> str:
    """The user's own spec, with each `module:object` in it imported and by its name (registry.named)."""
    text, scope = split_scope(spec)
    parts = [registry.named(FOLDER, part.strip()) for part in text.split("+")]
    return "+".join(parts) + (f"@{','.join(scope)}" if scope else "")


def load(spec: str, absent: Collection[str] = ()) -> Attack:
    """The attack that a spec names. Raises UnknownName with the nearest, UsageError for a misfit.

    absent: those of a saved plan that are not here. They raise when they are asked.
    """
    unscoped, scope = split_scope(spec)
    parts = []
    for text in unscoped.split("+"):
        name, colon, variant = text.strip().partition(":")
        if not name or (colon and not variant):
            raise UsageError(
                f"Attack '{spec}' is not of the form NAME[:VARIANT][+NAME[:VARIANT]...][@TECHNIQUE,...]."
            )
        if "," in name:
            raise UsageError(f"'{spec}' names several attacks. Give --attack once for each.")
        # A variant without its attack suggests that attack, not a similar name: base64 is encoding:base64.
        own = [each for each in names() if registry.is_ours(FOLDER, each)]
        if name not in (*names(), *absent) and (
            of := [each for each in own if name in variants_of(load_part(each))]
        ):
            raise UsageError(
                f"No attack named '{name}'. Did you mean '{of[0]}:{name}'? List them: heredity attacks",
                code="unknown-name",
            )
        parts.append(_part(name, variant if colon else None, absent))
    return Attack(tuple(parts), scope)


def planned(spec: str, absent: Collection[str] = ()) -> Attack:
    """The attack of a saved plan, whose spec is written out in full; `absent` ones can be read, not asked.

    Raises Damaged if it is not. Anyone can write a plan: `suffix:FILE.txt` without the digest that planning
    adds could send the lines of any file to the models.
    """
    attack = load(spec, absent)
    if attack.spec != spec:
        raise Damaged(
            f"The plan has the attack '{spec}', which no planning writes: its variant is not written out. "
            "Plan the study again, in another folder."
        )
    return attack


def context_for(application: Application) -> AttackContext:
    """The attack context of this application for sample 0 of seed 0."""
    return AttackContext(
        words=probes.slot_values(application),
        max_turns=application.max_turns,
        decoding=application.decoding,
        has_retrieval=application.retrieval is not None,
    )


_NO_LIMIT = 64  # replies of a conversation: the most that an application may allow


def check_attacker(applied: Sequence[Attack], *, is_there: bool) -> None:
    """Raise UsageError if an attack lacks its attacker model, or if no attack uses the one given."""
    asking = [attack.spec for attack in applied if attack.needs_attacker]
    may_ask = asking or any(attack.is_adaptive for attack in applied)
    if asking and not is_there:
        raise UsageError(f"Attack '{asking[0]}' has a model write its words; name it: --attacker MODEL")
    if is_there and not may_ask:
        raise UsageError("No attack of this study asks an attacker model: leave --attacker out.")


def check_index(applied: Sequence[Attack], asked: Sequence[Probe], application: Application) -> None:
    """Raise UsageError if an attack searches on an embedding model, and the application by words only."""
    retrieval = application.retrieval
    if retrieval is None or retrieval.method != "bm25":
        return
    if searching := next((each for each in applied if any(map(each.wanted, asked))), None):
        raise UsageError(
            f"Attack '{searching.spec}' searches on the embedding model of an index, and application "
            f"'{application.name}' searches by bm25, which compares words. Give its [retrieval] "
            'method = "dense" or "hybrid", or leave out ",gradient".'
        )


def unsupported(applied: Sequence[Attack], models: Sequence[Model]) -> list[tuple[str, str]]:
    """("*", reason) for each attack that cannot access a model's weights; its trials are error rows."""
    return [
        ("*", f"{why_unsupported(attack, engines.choose(model))} ('{model.name}')")
        for model in models
        for attack in applied
        if attack.needs_weights and not engines.holds_weights(model)
    ]


def warnings(
    applied: Sequence[Attack], asked: Sequence[Probe], application: Application, samples: int
) -> list[str]:
    """Warnings about attacks that can run but do not measure what they seem to; one line each."""
    context, messages = context_for(application), []
    free = msgspec.structs.replace(context, max_turns=_NO_LIMIT)
    for attack in applied:
        wanted = max((attack.queries(probe, free) for probe in asked), default=0)
        if any(attack.queries(probe, context) < attack.queries(probe, free) for probe in asked):
            messages.append(
                f"{attack.spec} takes up to {wanted} turns, and the application allows {context.max_turns} "
                "(max_turns): it is cut short."
            )
    if samples > 1 and application.decoding.temperature == 0:
        same = [
            attack.spec
            for attack in applied
            if any(map(attack.covers, asked)) and not _draws(attack, asked[0], context)
        ]
        if same:
            messages.append(
                f"{samples} samples under greedy decoding (temperature 0) are the same words and the same "
                f"answer each time, under {', '.join(same)}. Set a temperature, or ask once."
            )
    return messages


def _draws(attack: Attack, probe: Probe, context: AttackContext) -> bool:
    """Whether another sample of an attack has different words, or a randomly sampled answer."""
    if attack.needs_attacker or attack.searches:
        return True
    first = []
    for sample in (0, 1):
        turns = attack(probe, msgspec.structs.replace(context, sample=sample, seed=sample + 1))
        first.append(next(turns))
        turns.close()
    decoding = first[0].decoding if isinstance(first[0], Turn) else None
    return first[0] != first[1] or (decoding is not None and decoding.temperature > 0)


def why_unsupported(attack: Attack, engine: str) -> str:
    """Why an attack on weights cannot work behind this engine."""
    return f"skipped: {attack.spec} works on weights in the torch engine, and this model is behind '{engine}'"
