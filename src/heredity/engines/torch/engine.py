"""A model's weights in PyTorch: shared prefix, continuous batching, answers independent of their company.

Promises: dtype and batch widths come from a short probe of this machine and are named in `name`; a prompt
goes through alone, and only widths that give a witness row the same bits are used (_tuning.py), so an answer
is the same alone, in company, in any order and after a restart. `numerics` carries the fingerprint.
Leaves to others: what is asked, and where replies are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from heredity.core import host
from heredity.core.errors import ContextOverflow, Damaged, EngineFailure
from heredity.core.records import Model, Reply, Request, encode, is_digest
from heredity.engines import NOT_VERIFIED, altered, cache_budget
from heredity.engines.chat.codec import AnswerStream, ChatCodec
from heredity.engines.formats import peft
from heredity.engines.formats import weights as _weights
from heredity.engines.protocols import Listener, TokenScores
from heredity.engines.torch import autotune, layerwise, refusal_direction
from heredity.engines.torch.autotune import Tuning
from heredity.engines.torch.batch import BatchRow, ContinuousBatch, PrefixCache, Session
from heredity.engines.torch.decoder import BLOCK, Decoder, SharedPrefix, padded, round_up

_OF_CHUNKS = 8  # so small a part of what slots may take is for beginnings that are kept
_LOOKAHEAD = 4  # requests waiting to be sorted, as a multiple of the batch width
_RULE = "rows apart"  # a prompt is prefilled alone, a softmax adds up whole cells; before, neither
_EMPTY = SharedPrefix((), [], [])


def load(model: Model, folder: Path, tuning: Path | None = None) -> TorchEngine:
    """The engine of a recorded model; an adapter's lies over its base, which is held once for all of them."""
    if model.format == "adapter":
        if not model.parents or not is_digest(model.parents[0]):  # an id, never a path
            raise Damaged(
                f"The record of '{model.name}', an adapter, names no model as its base.",
                code="adapter-without-base",
            )
        return open_folder(folder.parents[1] / model.parents[0] / folder.name, tuning, adapter=folder)
    return open_folder(folder, tuning)


def open_folder(
    folder: Path,
    tuning: Path | None = None,
    dtype: str | None = None,
    width: int | None = None,
    adapter: Path | None = None,
    is_probed: bool = True,
    is_streamed: bool = False,
) -> TorchEngine:
    """Load the safetensors in a folder, and lay over them the adapter of another.

    tuning: a file that keeps the probe's result; dtype: "float32" or "bfloat16" instead of the faster one;
    width: the widest batch to use; is_probed: False spares the probe where prompts are read and not answered
    (widths are not proven then, and the engine's name says so); is_streamed: weights are read a layer at a
    time at every prefill and let go, which takes the memory of one layer. Raises Unavailable for an
    architecture this engine does not have.
    """
    host.keep_freed_memory()
    kept = autotune.read_tuning(tuning)
    chosen = getattr(torch, dtype or (kept.dtype if kept else "") or _faster_dtype(folder))
    with torch.inference_mode():
        weights = (layerwise.read if is_streamed else _weights.resident)(folder, chosen)
        if adapter is not None:
            weights = peft.apply_adapter(weights, adapter, chosen)
        decoder = Decoder(weights, chosen)
        host.trim_memory()
        found = autotune.tune(decoder, tuning) if is_probed else autotune.unproven(decoder)
        host.trim_memory()
    engine = TorchEngine(decoder, ChatCodec(folder), folder, found, width)
    engine.is_adapted = adapter is not None
    return engine


def _faster_dtype(folder: Path) -> str:
    config = _weights.read_config(folder)
    return host.choose_dtype(config.hidden_size, config.intermediate_size)


class TorchEngine:
    """A decoder, its chat, and the batches that answer."""

    def __init__(
        self, decoder: Decoder, chat: ChatCodec, folder: Path, tuning: Tuning, width: int | None = None
    ) -> None:
        self._decoder: Decoder | None = decoder
        self._chat, self._tuning, self.folder = chat, tuning, folder
        self._with_gradients: Any = None  # the weights once more, for a search
        self.is_adapted = False
        self._widths = tuple(w for w in tuning.widths if width is None or w <= width) or tuning.widths[:1]
        self._stops = chat.stops(folder)
        self._prefixes: dict[tuple[int, ...], SharedPrefix] = {(): _EMPTY}
        self._chunks = PrefixCache(cache_budget() // _OF_CHUNKS)
        dtype = str(decoder.dtype).removeprefix("torch.")
        # The rule by which rows meet stands in it: answers made under another are not taken for these.
        self.numerics = f"torch {dtype} {tuning.fingerprint} {_RULE}"
        width = self._widths[-1]
        dtype += f" ({how})" if (how := decoder.weights.how) else ""
        self.name = f"torch {torch.__version__} {dtype} width {width} arithmetic {tuning.fingerprint}"
        self.base_numerics = self.numerics
        self.is_batch_unverified = not tuning.is_proven
        if self.is_batch_unverified:
            self.name += f" ({NOT_VERIFIED})"

    @property
    def is_base(self) -> bool:
        return self._chat.is_base

    @property
    def boundary(self) -> str:
        """The token that stands between texts, as text: what an empty context is made of; "" where an empty
        text has a token already."""
        if self._chat.encode(self._chat.render(Request(0, ()))):
            return ""
        return self._chat.decode((self._chat.end if self._chat.start is None else self._chat.start,))

    def render(self, request: Request) -> str:
        return self._chat.render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        with torch.inference_mode():
            yield from Session(self, requests).run()

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        with torch.inference_mode():
            yield from Session(self, requests, listener).run()

    @property
    def width(self) -> int:
        return self._widths[-1]

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """Natural-log probability of every token of each continuation, given the rendered request.

        A continuation is tokenized behind the prompt's own tokens; each is one prefill, but all
        of one token share one. Raises ContextOverflow.
        """
        return [one.logs for one in self.scored(request, continuations)]

    def scored(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """As `score`, and whether greedy decoding would say each continuation."""
        decoder = self.decoder
        with torch.inference_mode():
            said = [self._chat.continuation(text) for text in continuations]
            prefix, own = self._prompt(request, max(map(len, said)))
            if all(len(one) == 1 for one in said):
                logs = self._log_probabilities(decoder, prefix, own, ())[0]
                likeliest = int(logs.argmax())
                return [TokenScores([float(logs[token])], token == likeliest) for (token,) in said]
            return [self._scored(decoder, prefix, own, one) for one in said]

    def log_probability(
        self, request: Request, said: Sequence[int], picked: Sequence[tuple[int, int]]
    ) -> list[float]:
        """Of each (i, token) in `picked`: of the token behind the request and `said[:i]`, natural log."""
        with torch.inference_mode():
            prefix, own = self._prompt(request, len(said))
            logs = self._log_probabilities(self.decoder, prefix, own, tuple(said))
            return [float(logs[place, token]) for place, token in picked]

    def _prompt(self, request: Request, n_more: int) -> tuple[SharedPrefix, tuple[int, ...]]:
        """A request, split, with room for `n_more` tokens behind it. Raises ContextOverflow."""
        tokens = self._chat.encode(self.render(request))
        if (n_needed := len(tokens) + n_more) > self.decoder.shape.context:
            raise ContextOverflow(f"{n_needed} tokens needed, {self.decoder.shape.context} there")
        return self.split(request, tokens)

    def tokens_behind(self, request: Request, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of the rendered request, and of a text that goes on behind it."""
        return self._chat.encode(self.render(request)), self._chat.continuation(text)

    def _scored(
        self, decoder: Decoder, prefix: SharedPrefix, own: tuple[int, ...], said: tuple[int, ...]
    ) -> TokenScores:
        logs, tokens = self._log_probabilities(decoder, prefix, own, said[:-1]), torch.tensor(said)
        is_greedy = bool((logs.argmax(dim=1) == tokens).all())
        return TokenScores(logs.gather(1, tokens[:, None])[:, 0].tolist(), is_greedy)

    def _log_probabilities(
        self, decoder: Decoder, prefix: SharedPrefix, own: tuple[int, ...], said: tuple[int, ...]
    ) -> torch.Tensor:
        """Of the next token, behind the prompt and behind each token of `said`: (1 + said, vocabulary)."""
        slots = decoder.slots(1, round_up(padded(own + said), BLOCK))
        hidden = decoder.prefill(prefix, slots, 0, own + said)[len(own) - 1 : len(own) + len(said)]
        return torch.log_softmax(decoder.logits(hidden).float(), dim=-1)

    # --- for attacks that hold the weights ------------------------------------------------------------

    def direction(self, harmful: Sequence[Request], harmless: Sequence[Request]) -> str:
        """The direction that tells the one kind from the other, as a text (_direction.py)."""

        def prompts(requests: Sequence[Request]) -> list[tuple[int, ...]]:
            return [self._chat.encode(self.render(request)) for request in requests]

        with torch.inference_mode():
            openings = tuple(
                sorted({self._chat.continuation(text)[0] for text in refusal_direction.OPENINGS})
            )
            return refusal_direction.find(self.decoder, prompts(harmful), prompts(harmless), openings)

    def without(self, direction: str) -> TorchEngine:
        """This engine with a direction projected out of its residual stream wherever something is added."""
        touched = self.decoder.touched(refusal_direction.projection(direction))
        engine = TorchEngine(touched, self._chat, self.folder, self._tuning, self._widths[-1])
        how = f"without direction {refusal_direction.digest_of(direction)}"
        engine.name, engine.numerics = altered(engine.name, how), altered(engine.numerics, how)
        return engine

    @property
    def n_layers(self) -> int:
        return self.decoder.shape.n_layers

    def until(self, n_layers: int) -> TorchEngine:
        """The first layers alone, whose `state` can be read; what it would answer means nothing.

        Raises EngineFailure for more layers than there are.
        """
        if not 0 < n_layers <= self.decoder.shape.n_layers:
            raise EngineFailure(
                f"no layer {n_layers}: this model has {self.decoder.shape.n_layers}", code="layer-missing"
            )
        engine = TorchEngine(
            self.decoder.until(n_layers), self._chat, self.folder, self._tuning, self._widths[-1]
        )
        how = f"first {n_layers} layers"
        engine.name, engine.numerics = altered(engine.name, how), altered(engine.numerics, how)
        return engine

    def state(self, request: Request) -> torch.Tensor:
        """The residual stream behind the last layer, at the last token of the rendered request: (hidden,),
        float32. Raises ContextOverflow."""
        with torch.inference_mode():
            tokens = self._chat.encode(self.render(request))
            if len(tokens) > self.decoder.shape.context:
                raise ContextOverflow(f"{len(tokens)} tokens needed, {self.decoder.shape.context} there")
            prefix, own = self.split(request, tokens)
            slots = self.decoder.slots(1, round_up(padded(own), BLOCK))
            return self.decoder.prefill(prefix, slots, 0, own)[len(own) - 1].float()

    def suffix(self, request: Request, mark: str, target: str, steps: int, seed: int) -> str:
        """Words for the place of `mark` after which the model begins with `target`, as JSON (_gcg.py)."""
        from heredity.engines.torch import gcg

        chat = self._chat
        if self.is_adapted:
            raise EngineFailure("a search on gradients needs whole weights: merge the adapter first")
        if self.decoder.weights.how:
            raise EngineFailure(
                "a search on gradients needs weights in floating point, and these are int8",
                code="search-needs-floats",
            )
        if self._with_gradients is None:
            self._with_gradients = gcg.load(self.folder)
        tongue = gcg.TokenizerView(chat.encode, chat.continuation, chat.decode)
        before, _, after = self.render(request).partition(mark)
        found = gcg.search(self._with_gradients, tongue, before, after, target, steps, seed)
        return encode(found).decode()

    def close(self) -> None:
        self._decoder = self._with_gradients = None
        self._prefixes, self._chunks = {}, PrefixCache(0)
        host.trim_memory()

    # --- for a session (_session.py) -------------------------------------------------------------------

    @property
    def decoder(self) -> Decoder:
        if self._decoder is None:
            raise EngineFailure("this engine is closed")
        return self._decoder

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a rendered text."""
        return self._chat.encode(text)

    def split(self, request: Request, tokens: tuple[int, ...]) -> tuple[SharedPrefix, tuple[int, ...]]:
        """The application's prefix, computed once, and the request's own tokens behind it (at least one)."""
        shared = self._chat.shared(request)
        if len(tokens) <= len(shared) or tokens[: len(shared)] != shared:
            shared = ()
        if shared not in self._prefixes:
            self._prefixes[shared] = self.decoder.prefix(shared)
        return self._prefixes[shared], tokens[len(shared) :]

    def batch(self, prefix: SharedPrefix) -> ContinuousBatch:
        return ContinuousBatch(self.decoder, prefix, self._widths, self.is_over, cache_budget(), self._chunks)

    @property
    def lookahead(self) -> int:
        return _LOOKAHEAD * self._widths[-1]

    def is_over(self, row: BatchRow) -> bool:
        """Whether the last token ended the answer: a stop token, or a base model that speaks for the user."""
        if row.said[-1] in self._stops:
            return True
        return bool(self._chat.stop_text) and self._chat.stop_text in self._chat.decode(row.said[-8:])

    def spoken(self) -> AnswerStream:
        """What tells a row's answer while it grows."""
        return AnswerStream(self._chat.decode, self._chat.stop_text)

    def said(self, row: BatchRow) -> list[int]:
        """A row's tokens without the one that ended it."""
        return row.said[:-1] if row.said[-1] in self._stops else row.said

    def text(self, row: BatchRow) -> str:
        """What a finished row said, without the token or text that ended it."""
        text = self._chat.decode(self.said(row))
        return text.split(self._chat.stop_text, 1)[0] if self._chat.stop_text else text
