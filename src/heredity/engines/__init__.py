"""How a model answers. An engine is a model loaded and answering; each file here is one kind.

A file `engines/<name>.py` has one function, `load`, as `Load` below says; which file answers for a model says
`choose`. A local model comes with its files, a remote one with a record whose recipe says where it is.

Promises (every engine): replies may come in any order, each carries its request's key; an answer depends on
its request alone, not on company, order or restart; a failed request comes back as a reply with stop "error".
Leaves to others: what is asked (attacks/, application.py) and whether the answer was bad (judges/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from heredity.core import host, registry
from heredity.core.errors import HeredityError, Unavailable, UnknownName
from heredity.core.records import Decoding, Model, Reply, Request
from heredity.core.sanitize import clean_text

_ALTERED = " | "
UNPROVEN = "answers may depend on their company"  # in the name of an engine with `is_batch_unverified`
BY_FORMAT = {
    "safetensors": "torch",
    "gguf": "torch",
    "int8": "torch",
    "adapter": "torch",
    "remote": "remote",
    "scripted": "scripted",
}


_BY_OBJECTIVE = {"masked": "encoder", "contrastive": "dual"}


def choose(model: Model) -> str:
    """The name of the file of the engine that answers for this model.

    It is what the model's recipe recorded as its setting `engine`, else the usual one of the model's format
    (a GGUF's is torch, by way of its dequantized child); of a model that writes no text, by what it learned.
    """
    said = model.recipe.settings
    return str(said.get("engine") or _BY_OBJECTIVE.get(str(said.get("objective"))) or BY_FORMAT[model.format])


def loader(model: Model, is_to_write: bool = True) -> Load:
    """What loads the engine of this model. Raises Unavailable where that engine is not on this machine, and
    for a model that writes no text, unless none is wanted of it."""
    if is_to_write and (why := why_speechless(model)):
        raise Unavailable(f"'{model.name}' cannot answer: {why}.", code="writes-no-text")
    name = choose(model)
    host.configure()  # the engine's module may load torch
    try:
        load: Load = registry.load("engines", name).load
    except UnknownName as error:
        raise Unavailable(f"'{model.name}' cannot answer here: {error}", code="engine-missing") from error
    except ImportError as error:
        raise Unavailable(
            f"The engine '{name}', which '{model.name}' needs, is not installed ({error}). "
            f"Install it: pip install 'heredity[{name}]'"
        ) from error
    return load


def why_speechless(model: Model) -> str:
    """Why a model writes no text, whatever engine it is given; "" for one that does."""
    if model.modality != "text":
        return f"its modality is {model.modality}: it writes no text"
    if model.recipe.settings.get("objective") == "masked":
        return "it is an encoder, which fills gaps in a text and writes none"
    return ""


class Load(Protocol):
    """What an engine's file has under the name `load`."""

    def __call__(self, model: Model, folder: Path, tuning: Path | None = None) -> Engine:
        """The model, loaded. Raises Unavailable, saying what to do, where it cannot be on this machine.

        folder: the model's files, verified; empty for a remote model. tuning: a file of the store, there or
        not, for what the engine measured about this model on this machine.
        """


class Engine(Protocol):
    """A model loaded and answering."""

    @property
    def name(self) -> str:
        """What computed the answers, in words that go into every row: kind, dtype, width, versions."""

    @property
    def numerics(self) -> str:
        """The part of `name` that may change an answer's bits (kind, dtype, device); keys the response cache.
        Empty: answers are not worth caching (scripted)."""

    def render(self, request: Request) -> str:
        """The full text the model will see for this request, prefill included; of a remote model, whose
        template is not known, a text that is the same exactly for the same request. No clock, no network."""

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests, as many at a time as is fast.

        `requests` is pulled as room frees up, always by the thread that iterates over the replies: an engine
        may wait for many answers in threads of its own. None in the stream means "nothing ready now, but
        replies under way will bring more": the engine goes on with what it has and asks again after its next
        reply. What fails for one request (a refused key does not) is a reply with stop "error"; what fails
        for all is raised as EngineFailure and ends the run, which keeps what was answered. Closed early, the
        iterator gives up what is under way.
        """

    def close(self) -> None:
        """Free the memory."""


class Listener(Protocol):
    """Who hears answers while they grow. Called by whatever thread of the engine's has an answer in hand."""

    def is_heard(self, key: int) -> bool:
        """Whether this request's answer is wanted piece by piece."""

    def hear(self, key: int, more: str) -> None:
        """What it has grown by: whole characters. All pieces come before its reply."""

    def is_wanted(self, key: int) -> bool:
        """Whether the rest is still wanted. Where not, its reply comes soon, with stop "length"."""


class Streamer(Engine, Protocol):
    """An engine that is heard while it answers, and can give up an answer."""

    @property
    def width(self) -> int:
        """How many requests it answers at once."""

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """As `reply`, heard by a listener. The stream is asked for requests all the time there is room."""


class Accountant(Protocol):
    """An engine that has more to tell of a run than its name; what it tells goes into the run's row."""

    def account(self) -> dict[str, Any]:
        """Counts (`n_...`, `cost`) and lists of texts, e.g. `served`, what a service said that it served."""

    def as_sent(self, decoding: Decoding) -> Decoding:
        """The decoding that the service will really use, by which the response cache tells answers apart."""


class Open(Engine, Protocol):
    """An engine that holds the model's weights and lets an attack at them."""

    def direction(self, harmful: Sequence[Request], harmless: Sequence[Request]) -> str:
        """The direction in the residual stream that tells the one kind of request from the other, as a text.

        Raises UsageError where there are too few of them.
        """

    def without(self, direction: str) -> Engine:
        """The same model with that direction taken out; shares the weights, has a name and numerics of its
        own (`altered`), and this engine's numerics as `base_numerics`."""

    def suffix(self, request: Request, mark: str, target: str, steps: int, seed: int) -> str:
        """Words for the place of `mark` after which the model begins with `target`, as JSON with "text",
        "loss_before", "loss_after" and "n_steps". Raises EngineFailure where none can be searched for."""


def is_open(model: Model) -> bool:
    """Whether the engine of this model holds its weights, so that it is an Open."""
    return choose(model) == "torch"


def altered(name: str, how: str) -> str:
    """The name, or the numerics, of an engine whose model an attack has changed."""
    return f"{name}{_ALTERED}{how}"


def base_numerics(engine: Engine) -> str:
    """The numerics of the engine before an attack changed its model; its own where none did."""
    return str(getattr(engine, "base_numerics", engine.numerics))


def is_batch_unverified(engine: Engine) -> bool:
    """Whether an answer of this engine may depend on what else is in its batch; an engine that does not say
    has verified that it does not, or answers one request at a time."""
    return bool(getattr(engine, "is_batch_unverified", False))


def failed_reply(request: Request, prompt: str, error: HeredityError, **more: Any) -> Reply:
    """The reply of a request that an engine could not answer; `more` are further fields of it."""
    words = clean_text(str(error))
    return Reply(request.key, prompt, "", stop="error", error=words, error_code=error.code, **more)


class Scored(NamedTuple):
    """A continuation's natural-log probabilities, a token each, and whether each token was the likeliest."""

    logs: list[float]
    is_greedy: bool


class Scorer(Protocol):
    """An engine that gives log-probabilities of given continuations."""

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of every token of each continuation, given the rendered request."""


class Completer(Engine, Protocol):
    """An engine that also goes on from a plain text: a request without messages, the text as its prefill."""

    @property
    def is_base(self) -> bool:
        """Whether the model has no chat template of its own."""


class Filler(Protocol):
    """An encoder that says which tokens a gap may hold: engines/encoder.py."""

    def fill(self, text: str, mark: str, options: Sequence[str]) -> list[float]:
        """Natural-log probability of each option in the place of `mark`, the rest of `text` given."""


class Matcher(Protocol):
    """A dual encoder that says how well images and texts fit together: engines/dual.py."""

    def match(self, images: Sequence[Path | bytes], texts: Sequence[str]) -> list[list[float]]:
        """Similarity of each image (rows) to each text (columns): the texts are the names of classes for
        zero-shot classification, and captions for retrieval."""
