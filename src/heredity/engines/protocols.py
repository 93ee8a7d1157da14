"""The protocol of an engine, and its `Capabilities`: one value that it gives and callers read.

Every engine is an `Engine`; one that only answers text declares nothing more. A file `engines/NAME.py`, or
`engines/NAME/engine.py`, is an `EngineModule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from heredity.core.host import Device
from heredity.core.records import Decoding, Model, Reply, Request

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """A loaded model that answers requests.

    Replies may come in any order; each carries the key of its request. An answer depends on its request only:
    not on the batch, the order, or a restart. An engine that does more has a property `capabilities`.
    """

    @property
    def name(self) -> str:
        """A description for people, stored with every row: kind, dtype, batch width, versions."""

    @property
    def numerics(self) -> str:
        """The part of `name` that can change the bits of an answer; a key of the response cache.

        An empty string means that answers are not worth caching (`scripted`).
        """

    def render(self, request: Request) -> str:
        """Return the full prompt of a request, prefill included. Uses no clock and no network.

        `chat.codec.ChatCodec` lists where each engine takes its chat template from. The template of a remote
        model is unknown: its text is equal only for equal requests.
        """

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests, as many at a time as is fast.

        The thread that iterates over the replies also pulls `requests`, whenever there is room. None in the
        stream means "nothing is ready, but replies in flight will bring more". The engine then continues and
        asks again after its next reply. Closing the iterator early abandons the requests in flight.

        A failure of one request is a reply with stop "error". A failure of all requests raises EngineFailure,
        and so does a refused key. The run then ends and keeps its answers.
        """

    def close(self) -> None:
        """Free the memory."""


@runtime_checkable
class EngineModule(Protocol):
    """The module of an engine: it defines `load`."""

    def load(
        self, model: Model, folder: Path, tuning: Path | None = None, device: Device | None = None
    ) -> Engine:
        """Load a model. Raises Unavailable, with advice, if this machine cannot.

        folder: the verified files of the model; empty for a remote model.
        tuning: a file for the engine's measurements of this model on this machine; it may not exist yet.
        device: where the model computes; None: `host.choose_device`. A model elsewhere ignores it.
        """


class AddressedRequest(Request, frozen=True):
    """A request of a caller, or of one of the models that share an engine. Neither is stored.

    adapter: the number of its adapter in that engine; 0: the base. caller: an engine reuses nothing of a
    prompt for another caller, whom its time would tell that the prompt was sent; "" for none.
    """

    adapter: int = 0
    caller: str = ""


class Listener(Protocol):
    """Receives answers while they are generated. Any thread of the engine may call it."""

    def is_heard(self, key: int) -> bool:
        """Return True if the answer of this request is wanted in parts."""

    def hear(self, key: int, more: str) -> None:
        """Receive the next part: whole characters. All parts come before the reply."""

    def is_wanted(self, key: int) -> bool:
        """Return False to cancel the rest. The reply then comes soon, with stop "length"."""


class Streamer(Protocol):
    """Reports answers while they are generated, and cancels them."""

    @property
    def width(self) -> int:
        """The number of requests that it answers at once."""

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Do the same as `Engine.reply` and report to a listener. Pulls requests whenever there is room."""


class TokenScores(NamedTuple):
    """Natural-log probability of each token of a text, and whether greedy decoding gives that text."""

    logs: list[float]
    is_greedy: bool = False


class Scorer(Protocol):
    """Computes log-probabilities of given texts."""

    @property
    def boundary(self) -> str:
        """The token between texts, as text: an empty context consists of it."""

    def score(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """Return the scores of each continuation of the prompt. Raises ContextOverflow."""


class TokenLog(NamedTuple):
    """A token of a text, and the natural-log probability that the model gave it there.

    log: None for the first token of a text. top: the likeliest tokens there, as text, with theirs.
    """

    token: int
    text: str
    log: float | None
    top: tuple[tuple[str, float], ...]


class TokenScorer(Protocol):
    """Scores every token of a text, given as tokens."""

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""

    def prompt_tokens(self, request: Request) -> tuple[int, ...]:
        """Return the tokens of a request's prompt."""

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the plain text whose prompt has exactly these tokens.

        Raises UsageError if no text has them, or a token is not in the vocabulary.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text. Raises UsageError if one is not in the vocabulary."""

    def token_logs(self, tokens: Sequence[int], start: int, n_top: int) -> list[TokenLog]:
        """Return the scores of `tokens[start:]`, and of the likeliest token after them.

        n_top: how many of the likeliest tokens to list at each place.
        Raises ContextOverflow, and UsageError if a token is not in the vocabulary.
        """


class WhiteBoxEngine(Engine, Protocol):
    """An engine that holds the weights and gives an attack access to them."""

    def direction(self, harmful: Sequence[Request], harmless: Sequence[Request]) -> str:
        """Find the residual direction that separates two kinds of request, as base64 text.

        Raises UsageError if there are too few requests.
        """

    def without(self, direction: str) -> Engine:
        """Return the same model with that direction projected out.

        The weights are shared. Name and numerics differ (`altered`); `base_numerics` stays the same.
        """

    def suffix(self, request: Request, mark: str, target: str, steps: int, seed: int) -> str:
        """Search a text to put in place of `mark`, so that the model begins its answer with `target`.

        Returns JSON with "text", "loss_before", "loss_after" and "n_steps". Raises EngineFailure if this
        model cannot be searched.
        """

    @property
    def n_layers(self) -> int:
        """The number of layers."""

    def until(self, n_layers: int) -> WhiteBoxEngine:
        """Return an engine of the first layers only. Raises EngineFailure if there are fewer layers."""

    def state(self, request: Request) -> torch.Tensor:
        """Return the residual stream after the last layer, at the last prompt token.

        A float32 tensor (hidden size,). Raises ContextOverflow.
        """


class FirstAnswer:
    """Calls `listener` at the first answer of each stream, errors aside."""

    def __init__(self) -> None:
        self.listener: Callable[[], object] | None = None

    def announce(self, replies: Iterator[Reply]) -> Iterator[Reply]:
        """Yield the replies."""
        is_first = True
        for reply in replies:
            if is_first and reply.error is None:
                is_first = False
                if self.listener is not None:
                    self.listener()
            yield reply


def _as_given(decoding: Decoding) -> Decoding:
    return decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The facts about the source of answers that a study's rows and the keys of its cache hold.

    account: counts of a run (`n_...`, `cost`) and lists of texts, such as the `served` models of a service.
    as_sent: the decoding that a service really uses.
    base_numerics: the numerics before an attack changed the model; "" if none can.
    is_batch_unverified: an answer may depend on what else is in the batch.
    first_answer: of a model elsewhere, or of a function: it may never answer.
    base_at_server: an engine of an adapter's base at the same server, which ends with this one.
    """

    account: Callable[[], dict[str, object]] = dict
    as_sent: Callable[[Decoding], Decoding] = _as_given
    base_numerics: str = ""
    is_batch_unverified: bool = False
    first_answer: FirstAnswer | None = None
    base_at_server: Callable[[], Engine | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The things that an engine does besides answering. None: it does not.

    is_base: it also continues a plain text (a request without messages, the text as its prefill), and whether
    its model has no chat template. check_schema: raises BadArgument for a JSON schema that answers cannot be
    held to. check_length: raises ContextOverflow for a prompt that surely has more tokens than the context,
    in any thread.
    """

    streamer: Streamer | None = None
    is_base: bool | None = None
    scorer: Scorer | None = None
    token_scorer: TokenScorer | None = None
    weights: WhiteBoxEngine | None = None
    check_schema: Callable[[str], object] | None = None
    check_length: Callable[[Request], object] | None = None
    provenance: Provenance = Provenance()


@runtime_checkable
class DeclaringEngine(Protocol):
    """An engine that does more than answer."""

    @property
    def capabilities(self) -> Capabilities:
        """Its capabilities; made at each call, so that no circle of references holds the weights."""


def capabilities(engine: Engine) -> Capabilities:
    """Return what an engine declares; nothing of one that only answers."""
    return engine.capabilities if isinstance(engine, DeclaringEngine) else Capabilities()
