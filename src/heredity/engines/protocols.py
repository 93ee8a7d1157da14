"""The capabilities of an engine, one Protocol each. Check for one with `isinstance`.

Every engine is an `Engine`. The other protocols are optional: an engine has them or not, whatever its file.
A file `engines/NAME.py`, or `engines/NAME/engine.py`, is an `EngineModule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from heredity.core.host import Device
from heredity.core.progress import Watch
from heredity.core.records import Decoding, Model, Reply, Request

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Engine(Protocol):
    """A loaded model that answers requests.

    Replies may come in any order; each carries the key of its request. An answer depends on its request only:
    not on the batch, the order, or a restart.
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


@runtime_checkable
class PhasedModule(EngineModule, Protocol):
    """The module of an engine that reports the phases of its loading, and the reading of shared prompts."""

    REPORTS_PHASES: bool

    def load(
        self,
        model: Model,
        folder: Path,
        tuning: Path | None = None,
        device: Device | None = None,
        watch: Watch | None = None,
    ) -> Engine:
        """As of EngineModule. watch: gets the phases, for as long as the engine lives."""


@runtime_checkable
class TextOnlyModule(EngineModule, Protocol):
    """The module of an engine some of whose targets take only the user's text."""

    def refuse_text_only(self, model: Model) -> None:
        """Raise UsageError, with what is accepted, if this target would not see a system prompt."""


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


@runtime_checkable
class Streamer(Engine, Protocol):
    """An engine that reports answers while it generates them and can cancel them."""

    @property
    def width(self) -> int:
        """The number of requests that it answers at once."""

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Do the same as `reply` and report to a listener. Pulls requests whenever there is room."""


@runtime_checkable
class Accountant(Protocol):
    """An engine that reports counts of a run, which are stored in the row of the run."""

    def account(self) -> dict[str, object]:
        """Return counts (`n_...`, `cost`) and lists of texts, such as the `served` models of a service."""


@runtime_checkable
class ServiceEngine(Protocol):
    """An engine of a model elsewhere, or of a function: it may never answer."""

    answered: Callable[[], None]  # called at the first answer of each stream, errors aside


@runtime_checkable
class ServerModule(Protocol):
    """The module of an engine whose models may be answered by one server."""

    def shared_address(self, model: Model) -> str:
        """The address of the server of somebody else that answers for this model; "" for none."""


@runtime_checkable
class SharedServer(Engine, Protocol):
    """An engine whose server may hold the base of an adapter next to it."""

    def base_at_server(self) -> Engine | None:
        """Return an engine of the base at the same server, which ends with this one; None without a base."""


@runtime_checkable
class DecodingAdapter(Protocol):
    """An engine whose service does not use every decoding parameter."""

    def as_sent(self, decoding: Decoding) -> Decoding:
        """Return the decoding that the service really uses; the response cache is keyed by it."""


@runtime_checkable
class SchemaEngine(Protocol):
    """An engine that holds answers to a JSON schema (Decoding.json_schema)."""

    def check_schema(self, schema: str) -> None:
        """Raise BadArgument for a schema that answers cannot be held to."""


@runtime_checkable
class BatchReporter(Protocol):
    """An engine that reports whether its batch invariance is unverified."""

    @property
    def is_batch_unverified(self) -> bool:
        """Whether an answer may depend on what else is in the batch."""


@runtime_checkable
class AlterableEngine(Protocol):
    """An engine whose model an attack can change."""

    @property
    def base_numerics(self) -> str:
        """The numerics before any change."""


@runtime_checkable
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


@runtime_checkable
class LayerReader(Protocol):
    """An engine that shows the residual stream of its model."""

    @property
    def name(self) -> str:
        """As of `Engine`."""

    @property
    def n_layers(self) -> int:
        """The number of layers."""

    def until(self, n_layers: int) -> LayerReader:
        """Return an engine of the first layers only. Raises EngineFailure if there are fewer layers."""

    def state(self, request: Request) -> torch.Tensor:
        """Return the residual stream after the last layer, at the last prompt token.

        A float32 tensor (hidden size,). Raises ContextOverflow.
        """


class TokenScores(NamedTuple):
    """Natural-log probability of each token of a text, and whether greedy decoding gives that text."""

    logs: list[float]
    is_greedy: bool


@runtime_checkable
class Scorer(Protocol):
    """An engine that computes log-probabilities of given texts."""

    @property
    def name(self) -> str:
        """As of `Engine`."""

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """Return the natural-log probability of every token of each continuation of the prompt."""


@runtime_checkable
class GreedyScorer(Engine, Scorer, Protocol):
    """A scorer that also reports whether greedy decoding would produce a text."""

    def scored(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """Return the scores of each continuation."""

    @property
    def boundary(self) -> str:
        """The token between texts, as text: an empty context consists of it."""

    def tokens_behind(self, request: Request, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of the prompt, and those of a text that follows it."""


class TokenLog(NamedTuple):
    """A token of a text, and the natural-log probability that the model gave it there.

    log: None for the first token of a text. top: the likeliest tokens there, as text, with theirs.
    """

    token: int
    text: str
    log: float | None
    top: tuple[tuple[str, float], ...]


@runtime_checkable
class PromptLimiter(Protocol):
    """An engine that reports a prompt far beyond its context in any thread, also while it answers."""

    def check_length(self, request: Request) -> None:
        """Raise ContextOverflow for a prompt that surely has more tokens than the context."""


@runtime_checkable
class TokenScorer(Engine, Protocol):
    """An engine that scores every token of a text, given as tokens."""

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


@runtime_checkable
class Completer(Engine, Protocol):
    """An engine that also continues a plain text: a request without messages, the text as its prefill."""

    @property
    def is_base(self) -> bool:
        """Whether the model has no chat template."""


@runtime_checkable
class Filler(Protocol):
    """An encoder that scores fillings of a masked position: engines/encoder.py."""

    def fill(self, text: str, mark: str, options: Sequence[str]) -> list[float]:
        """Return the natural-log probability of each option in place of `mark`, given the rest of `text`."""


@runtime_checkable
class Matcher(Protocol):
    """A dual encoder that compares images with texts: engines/dual.py."""

    def match(self, images: Sequence[Path | bytes], texts: Sequence[str]) -> list[list[float]]:
        """Return the similarity of each image (rows) to each text (columns).

        The texts are class names in zero-shot classification and captions in retrieval.
        """
