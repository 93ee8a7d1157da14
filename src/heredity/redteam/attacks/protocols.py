"""The context of a trial, which an attack gets, and one Protocol per kind of attack.

    class Capitals:
        cost = "adds none"

        def rewrite(self, text: str, context: AttackContext) -> str:
            return text.upper()


    ATTACK: TextTransform = Capitals()

A file of this folder names its attack `ATTACK`: a value with `cost` (an AttackPart), which is one of KINDS.
It may also be some of the other protocols here.

Promises: every random draw comes from the trial's seed, so a trial uses the same words under every Python
version. The context holds nothing about the model and no secret's value.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, MutableSequence, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from heredity.core.records import Consult, Decoding, Probe, Reply, Request, Turn
from heredity.engines import Engine, WhiteBoxEngine

T = TypeVar("T")
Turns = Generator[Turn | Consult, Reply, None]
Keep = Callable[[Callable[[], str]], str]  # what was kept of an earlier run, else what the function makes
MARK = "[[found]]"  # placeholder in a request for the text that a search finds

# --- the context ------------------------------------------------------------------------------------


class AttackReferee(Protocol):
    """Scores an attack's progress by the probe's own judge; keeps from the attack what it must not know."""

    def score(self) -> int:
        """Score the replies since the last call, from 1 (refusal) to 10 (breach); `0` if unknown."""

    def is_void(self, text: str) -> bool:
        """Whether these user words would count as a breach if the model only quoted them."""


class NoReferee:
    """A referee without scores, for use outside a study."""

    def score(self) -> int:
        return 0

    def is_void(self, text: str) -> bool:  # noqa: ARG002
        return False


class AttackContext(msgspec.Struct, frozen=True):
    """The trial's sample and seed, and the few words of the application that an attack may use.

    words        slot -> the application's word for it: "company", "secret_name", "tool", "forbidden_tool"
    max_turns    replies that the application allows in one conversation
    decoding     the application's sampling settings
    variant      the variant of the part that is asked; set for each part by the attack itself
    language     the language of the wrappers' words, set by the attack itself.
    has_attacker the study has an attacker model, for an attack that can do without one
    has_shared_steps  the plan is of a release that led up to every behaviour in the same words
    goes_on      the plan is of a release whose crescendo made all its steps, also after a breach in one
    referee      scores the conversation so far, for an attack that uses the score
    search_result  text that the search of the model's weights gave for this trial; "" for none
    has_retrieval  the application has an index
    triggers     the words before each document of this trial that were searched for; () for none
    """

    sample: int = 0
    seed: int = 0
    words: Mapping[str, str] = {}
    max_turns: int = 4
    decoding: Decoding = Decoding()
    variant: str = ""
    language: str = "en"
    referee: AttackReferee = NoReferee()
    search_result: str = ""
    has_retrieval: bool = False
    triggers: tuple[str, ...] = ()
    has_attacker: bool = False
    has_shared_steps: bool = False
    goes_on: bool = False

    def draw(self, purpose: str) -> Draw:
        """A stream of random numbers for one purpose, the same for the same trial."""
        return Draw(f"{self.seed}\0{purpose}")


class Draw:
    """Random numbers from a text. Only `random()` is used: Python promises its values for every version."""

    def __init__(self, source: str) -> None:
        self._random = random.Random(source).random

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._random() < p

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def some(self, n: int, items: Sequence[T]) -> list[T]:
        """`n` of the items, each at most once, in random order."""
        pool = list(items)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def shuffle(self, items: MutableSequence[T]) -> None:
        """Shuffle the items in place."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]


DEFAULT_CONTEXT = AttackContext()  # sample 0 of seed 0, in no application in particular


# --- the kinds of attack ----------------------------------------------------------------------------


@runtime_checkable
class AttackPart(Protocol):
    """An attack, as its file defines it."""

    @property
    def cost(self) -> str:
        """The queries that it takes or adds, in words."""


@runtime_checkable
class Strategy(AttackPart, Protocol):
    """Leads a conversation. A spec has one; `direct` if it names none."""

    def turns(self, probe: Probe, context: AttackContext) -> Turns:
        """The conversation: yields a turn, receives the reply to it."""

    def queries(self, probe: Probe, context: AttackContext) -> int:
        """The maximum number of turns for this probe."""


@runtime_checkable
class TurnTransform(AttackPart, Protocol):
    """Changes a turn: its words, its prefill, its decoding, or the messages before it."""

    def transform(self, turn: Turn, context: AttackContext, at: int) -> Turn:
        """Turn number `at` of its conversation, changed."""


@runtime_checkable
class TextTransform(AttackPart, Protocol):
    """Changes every text of the user."""

    def rewrite(self, text: str, context: AttackContext) -> str:
        """The text, changed."""


@runtime_checkable
class ProbeTransform(AttackPart, Protocol):
    """Words the probe differently before anything else acts on it."""

    def recast(self, probe: Probe, context: AttackContext) -> Probe:
        """The probe in other words."""

    def skips(self, probe: Probe, context: AttackContext) -> str:
        """Why this probe cannot be asked so; "" if it can."""


@runtime_checkable
class ModelTransform(AttackPart, Protocol):
    """Changes the model itself; on an engine that holds its weights."""

    def prepare(self, engine: WhiteBoxEngine, keep: Keep) -> Engine:
        """The engine with its model changed. `keep` returns an earlier result, or calls the search."""


@runtime_checkable
class PassageDelivery(AttackPart, Protocol):
    """Brings the probe's passage into the conversation in another way; the turns are the same."""

    def deliver(self, probe: Probe, context: AttackContext) -> Probe:
        """The probe as the application shows it."""

    def undeliverable(self, probe: Probe, context: AttackContext) -> str:
        """Why this probe cannot be delivered so; "" if it can."""


KINDS = (Strategy, TurnTransform, TextTransform, ProbeTransform, ModelTransform, PassageDelivery)


# --- what an attack may be besides ------------------------------------------------------------------


@runtime_checkable
class AttackerStrategy(Strategy, Protocol):
    """A strategy whose conversation also yields a Consult: a question to the study's attacker model."""

    @property
    def needs_attacker(self) -> bool:
        """Whether a study needs an attacker model for it."""


@runtime_checkable
class AdaptiveStrategy(Strategy, Protocol):
    """A strategy that adapts to scores, and to an attacker model where the study has one.

    It gets a referee in its context, and may yield a Consult if the context has an attacker.
    """

    @property
    def is_adaptive(self) -> bool:
        """Whether it uses the referee and an attacker."""


@runtime_checkable
class WeightSearch(TurnTransform, Protocol):
    """A transform that first searches the model's weights; it finds the result in `context.search_result`."""

    def search(self, engine: WhiteBoxEngine, request: Request, probe: Probe, context: AttackContext) -> str:
        """The text for the place of MARK in a request."""


class TriggerWanted(NamedTuple):
    """A search for words before `passage` that bring its embedding near that of `question`."""

    question: str
    passage: str
    n_steps: int


@runtime_checkable
class SearchedDelivery(PassageDelivery, Protocol):
    """A delivery that may search the index's embedding model; it finds the result in `context.triggers`."""

    def wanted(self, probe: Probe, context: AttackContext) -> tuple[TriggerWanted, ...]:
        """The searches for a probe's documents, in their order; () if the variant has none."""


@runtime_checkable
class Variants(AttackPart, Protocol):
    """An attack with several forms. `context.variant` has the chosen one."""

    @property
    def variants(self) -> tuple[str, ...]:
        """The forms that are listed; the first is the default."""


@runtime_checkable
class OpenVariants(Variants, Protocol):
    """An attack whose forms are an open set: a number, a file."""

    def resolve(self, variant: str) -> str:
        """The variant written out, as a plan stores it. Raises ValueError for a wrong one."""


@runtime_checkable
class AttackFile(Protocol):
    """A file of redteam/attacks/."""

    @property
    def ATTACK(self) -> AttackPart:
        """The attack."""
