"""A model's weights in PyTorch: a shared prefix, continuous batching, batch-invariant answers.

Promises: a short probe of this machine chooses dtype and batch widths, and `name` records them. Only widths
that give a witness row the same bits are used (autotune.py). Prompts are prefilled together only where that
keeps the bits. So an answer is the same by itself, in any batch, in any order and after a restart. `numerics`
carries the fingerprint.
Leaves to others: the questions, and storing the replies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch

from heredity.core import host
from heredity.core.errors import ContextOverflow, EngineFailure, UsageError
from heredity.core.host import CPU, Device
from heredity.core.progress import Watch, phase
from heredity.core.records import Model, Reply, Request, encode
from heredity.engines import (
    DTYPE,
    KV_CACHE,
    NOT_VERIFIED,
    Capabilities,
    Listener,
    Provenance,
    TokenLog,
    TokenScores,
    altered,
    base_folder,
)
from heredity.engines.chat import AnswerReader, ChatCodec, has_tokenizer
from heredity.engines.torch import autotune, refusal_direction
from heredity.engines.torch.autotune import Tuning
from heredity.engines.torch.decoder import (
    BLOCK,
    PAD,
    Decoder,
    KvSlots,
    ResidualHook,
    SharedPrefix,
    continued,
    padded,
    round_up,
)
from heredity.engines.torch.refusal_direction import Direction
from heredity.engines.torch.sampling import Constraints
from heredity.engines.torch.session import (
    MAX_DRAFT,
    Member,
    PrefixPool,
    PromptSplitter,
    Session,
    activated,
    placed,
)
from heredity.formats import adapted, weights
from heredity.formats.int8 import Linear
from heredity.formats.weights import Block, DecoderShape, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS = 16_384  # rows of the head in one matmul


def read_weights(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device = weights.ON_CPU,
    watch: Watch | None = None,  # noqa: ARG001 (no layer is read yet)
) -> Weights:
    """Return the weights in `folder`; only the last norm is in memory. Raises as `weights.read_weights`."""
    shape, rope, rope_scale, is_tied = weights.read_shape(folder)
    files = weights.TensorFiles(folder, dtype, device)
    rope = rope[0].to(device), rope[1].to(device)
    embedding = files.read(weights.EMBEDDING, as_stored=True)
    weights.check_hidden_size(folder, shape, embedding)
    head = embedding if is_tied else files.read(weights.HEAD, as_stored=True)
    norm = weights.norm_of(shape, files)
    blocks = _Layers(shape, folder, dtype, device)
    rows = _Widened(embedding, dtype)
    how = weights.how(shape, files)
    return Weights(shape, rows, blocks, norm, _parts(head, dtype), rope, rope_scale, how)


class _Layers(Sequence[Block]):
    """All layers; each is read again at every access."""

    def __init__(self, shape: DecoderShape, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._folder, self._dtype, self._device = shape, folder, dtype, device

    def __len__(self) -> int:
        return self._shape.n_layers

    @overload
    def __getitem__(self, at: int) -> Block: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Block]: ...
    def __getitem__(self, at: int | slice) -> Block | Sequence[Block]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not 0 <= at < len(self):
            raise IndexError(at)
        # The file is opened again, so that the pages of another layer do not stay mapped.
        return weights.block(self._shape, weights.TensorFiles(self._folder, self._dtype, self._device), at)


class _Widened:
    """A stored matrix that returns its rows in another dtype."""

    def __init__(self, matrix: torch.Tensor, dtype: torch.dtype) -> None:
        self._matrix, self._dtype = matrix, dtype

    def __getitem__(self, at: torch.Tensor) -> torch.Tensor:
        return self._matrix[at].to(self._dtype)


def _parts(matrix: torch.Tensor, dtype: torch.dtype) -> Linear:
    """Return x -> x W', computed for some rows of W at a time."""

    def multiply(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(*x.shape[:-1], len(matrix), dtype=dtype, device=matrix.device)
        for start in range(0, len(matrix), _ROWS):
            some = matrix[start : start + _ROWS].to(dtype)
            out[..., start : start + len(some)] = torch.nn.functional.linear(x, some)
        return out

    return multiply


GROUP = 32  # numbers that share a minimum and a scale
KvBits = Literal[4, 8]


def round_keys(keys: torch.Tensor, bits: KvBits) -> torch.Tensor:
    """Round keys (kv heads, positions, head_dim): groups of up to GROUP positions of one channel."""
    return torch.cat([_nearest(group, 1, bits) for group in keys.split(GROUP, dim=1)], dim=1)


def round_values(values: torch.Tensor, bits: KvBits) -> torch.Tensor:
    """Round values (kv heads, positions, head_dim): groups of up to GROUP channels of one position."""
    size = math.gcd(GROUP, values.shape[-1])
    return _nearest(values.unflatten(-1, (-1, size)), -1, bits).flatten(-2)


def _nearest(x: torch.Tensor, dim: int, bits: KvBits) -> torch.Tensor:
    """Round to 2^bits numbers between the minimum and the maximum along `dim`, which are kept as stored."""
    largest = 2**bits - 1
    low, high = x.amin(dim, keepdim=True).float(), x.amax(dim, keepdim=True).float()
    scale = ((high - low) / largest).to(x.dtype).float()  # a cache would keep it in this dtype
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = torch.round((x.float() - low) / scale).clamp_(0, largest)
    return (whole * scale + low).to(x.dtype)


class KvQuantizedDecoder(Decoder):
    """A decoder that rounds its keys and values to `bits` bits."""

    can_pack = False  # tokens attend to blocks that were rounded before them, so a block is a pass
    can_draft = False  # a block with a wrong token in it would be rounded with it
    chunk = BLOCK  # so that each block attends to rounded ones

    def __init__(
        self, weights: Weights, dtype: torch.dtype, bits: KvBits, hook: ResidualHook | None = None
    ) -> None:
        super().__init__(weights, dtype, hook)
        self.bits: KvBits = bits
        self.cache_form = f"kv int{bits} groups {GROUP}"

    def prefix(self, tokens: tuple[int, ...]) -> SharedPrefix:
        """Compute a prefix once, and round the rest of it that fills no block."""
        prefix = super().prefix(tokens)
        start = prefix.length // BLOCK * BLOCK
        if start < prefix.length:
            for keys, values in zip(prefix.keys, prefix.values, strict=True):
                rest = slice(start, prefix.length)
                keys[:, rest] = round_keys(keys[:, rest], self.bits)
                values[:, rest] = round_values(values[:, rest], self.bits)
        return prefix

    def _end_pass(self, slots: KvSlots, ends: Iterable[tuple[int, int]]) -> None:
        """Round each block that these tokens fill, in every layer."""
        for slot, end in ends:
            if end and end % BLOCK == 0:
                block = slice(end - BLOCK, end)
                for keys, values in zip(slots.keys, slots.values, strict=True):
                    keys[slot, :, block] = round_keys(keys[slot, :, block], self.bits)
                    values[slot, :, block] = round_values(values[slot, :, block], self.bits)

    def _like(self, weights: Weights, hook: ResidualHook | None) -> Decoder:
        return KvQuantizedDecoder(weights, self.dtype, self.bits, hook)


# A row attends by itself, and a softmax sums whole blocks. Part of `numerics`: stored keys hold it.
_RULE = "rows apart"
_RARE = -14.0  # log-probability of the beginning of a text that is not followed
_HEAD_ROWS = 64  # places at which the logits of a whole vocabulary are held at once


def load(
    model: Model,
    folder: Path,
    tuning: Path | None = None,
    device: Device | None = None,
    watch: Watch | None = None,
) -> TorchEngine:
    """Load a recorded model. An adapter is applied to its base, which is in memory once for all adapters.

    tuning: None measures nothing; the engine then has one narrow batch width.
    device: where it computes; None: `host.choose_device`.
    watch: gets the measuring of widths and the reading of shared prompts.
    A record of the recipe `kv_cache` or `dtype` sets how it computes (recipes/targets).
    """
    with phase(watch, "loading the libraries"):
        from transformers import AutoConfig  # noqa: F401  # it reads the configuration

    settings, where = model.recipe.settings, host.choose_device(device)
    kv_bits = settings["bits"] if model.recipe.kind == KV_CACHE else None
    dtype = settings["dtype"] if model.recipe.kind == DTYPE else None
    if model.format == "adapter":
        base = base_folder(model, folder)
        return open_folder(
            base, tuning, adapter=folder, is_probed=tuning is not None, device=where, watch=watch
        )
    return open_folder(
        folder, tuning, dtype, is_probed=tuning is not None, kv_bits=kv_bits, device=where, watch=watch
    )


def open_folder(
    folder: Path,
    tuning: Path | None = None,
    dtype: str | None = None,
    width: int | None = None,
    adapter: Path | None = None,
    is_probed: bool = True,
    is_streamed: bool = False,
    kv_bits: KvBits | None = None,
    device: Device = CPU,
    watch: Watch | None = None,
) -> TorchEngine:
    """Load the safetensors in a folder, with the adapter of another folder.

    tuning: a file that keeps the result of the probe.
    dtype: "float32" or "bfloat16" instead of the faster one. width: the widest batch to use.
    is_probed: False skips the probe, for one request at a time. The name then says that it is not verified.
    is_streamed: each prefill reads the weights layer by layer, which needs the memory of one layer.
    kv_bits: the bits to which keys and values are rounded.
    device, watch: as of `load`. On a GPU the weights are read straight into its memory.
    Raises Unavailable for an architecture that this engine does not have.
    """
    host.keep_freed_memory()
    host.prepare_device(device)
    tuning = _tuning_file(tuning, device)
    kept = None if tuning is None else autotune.read_tuning(tuning, device)
    chosen = getattr(torch, dtype or (kept.dtype if kept else "") or _faster_dtype(folder, device))
    with torch.inference_mode():
        read = read_weights if is_streamed else weights.resident
        loaded = read(folder, chosen, device.torch, watch)
        if adapter is not None:
            loaded = adapted.apply_adapter(loaded, adapter, folder, chosen)
        decoder = Decoder(loaded, chosen) if kv_bits is None else KvQuantizedDecoder(loaded, chosen, kv_bits)
        host.trim_memory()
        tuned = autotune.tune(decoder, tuning, watch=watch) if is_probed else None
    host.trim_memory()
    chat = ChatCodec(adapter if adapter is not None and has_tokenizer(adapter) else folder)
    engine = TorchEngine(activated(decoder), chat, folder, tuned, width, watch)
    engine.is_adapted = adapter is not None
    return engine


def _tuning_file(tuning: Path | None, device: Device) -> Path | None:
    """The file for the measurements on this device: a GPU has its own, next to that of the processor."""
    if tuning is None or device.is_cpu:
        return tuning
    return tuning.with_name(f"{tuning.name}-{device.kind}")


def _faster_dtype(folder: Path, device: Device) -> str:
    config = weights.read_config(folder)
    return host.choose_dtype(config.hidden_size, config.intermediate_size, device=device)


class AnsweringEngine:
    """A model that answers and scores.

    shared: the decoder with its batches. pool: where this model's prompts are split; often the same.
    """

    def __init__(
        self, shared: PrefixPool, pool: PromptSplitter, codec: ChatCodec, folder: Path, tuning: Tuning | None
    ) -> None:
        self._shared, self.codec, self.folder, self.tuning = shared, codec, folder, tuning
        decoder, stops = shared.decoder, codec.stops(folder)
        self._reader = AnswerReader(codec, stops)
        self._constraints = Constraints(codec, stops, decoder.shape.vocab_size)
        self.member = Member(pool, codec, self._reader, self._constraints)
        fingerprint = "unproven" if tuning is None else tuning.fingerprint
        dtype = str(decoder.dtype).removeprefix("torch.")
        # The batching rule is part of it: answers under another rule are not mixed with these.
        self.numerics = f"torch {dtype} {fingerprint} {'packed ' if shared.pass_widths else ''}{_RULE}"
        if decoder.cache_form:
            self.numerics += f" {decoder.cache_form}"
        device = Device.parse(str(decoder.device))
        if not device.is_cpu:
            self.numerics += f" on {device.card or device.kind}"
        dtype += f" ({how})" if (how := decoder.weights.how) else ""
        dtype += f" ({decoder.cache_form})" if decoder.cache_form else ""
        self.name = (
            f"torch {torch.__version__} {dtype} width {self.width} arithmetic {fingerprint}{device.suffix}"
        )
        is_unverified = tuning is None or not tuning.is_proven
        self._provenance = Provenance(base_numerics=self.numerics, is_batch_unverified=is_unverified)
        if is_unverified:
            self.name += f" ({NOT_VERIFIED})"

    @property
    def capabilities(self) -> Capabilities:
        """See Capabilities."""
        return Capabilities(
            streamer=self,
            is_base=self.codec.is_base,
            scorer=self,
            token_scorer=self,
            check_schema=self._constraints.of,
            check_length=self.check_length,
            provenance=self._provenance,
        )

    @property
    def width(self) -> int:
        """The widest batch."""
        return self._shared.widths[-1]

    @property
    def decoder(self) -> Decoder:
        """The decoder. Raises EngineFailure after `close`."""
        return self._shared.decoder

    @property
    def boundary(self) -> str:
        """The token between texts, as text: an empty context consists of it."""
        return self.codec.boundary

    def render(self, request: Request) -> str:
        """Return the full prompt of a request, prefill included."""
        return self.codec.render(request)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests."""
        with torch.inference_mode():
            yield from self._session(requests).run()

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Answer a stream of requests and report the answers while they grow."""
        with torch.inference_mode():
            yield from self._session(requests, listener).run()

    def _session(self, requests: Iterable[Request | None], listener: Listener | None = None) -> Session:
        return Session(self._shared, lambda _: self.member, requests, listener)

    # --- scores ---------------------------------------------------------------------------------------

    def score(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """Return the natural-log probability of every token of each continuation of the prompt.

        A continuation is tokenized after the prompt's own tokens. Each is one prefill; continuations of one
        token share one. Raises ContextOverflow.
        """
        decoder = self.decoder
        with torch.inference_mode():
            texts = [self.codec.continuation(text) for text in continuations]
            prefix, prompt = self._prompt(request, max(map(len, texts)))
            if all(len(one) == 1 for one in texts):
                logs = self._log_probabilities(decoder, prefix, prompt, ())[0].cpu()
                likeliest = int(logs.argmax())
                return [TokenScores([float(logs[token])], token == likeliest) for (token,) in texts]
            scores = []
            for text in texts:
                logs = self._log_probabilities(decoder, prefix, prompt, text[:-1])
                tokens = torch.tensor(text, device=logs.device)
                is_greedy = bool((logs.argmax(dim=1) == tokens).all())
                scores.append(TokenScores(logs.gather(1, tokens[:, None])[:, 0].tolist(), is_greedy))
            return scores

    def opening_logs(self, request: Request, texts: Sequence[str]) -> list[float]:
        """Return the natural-log probability that an answer begins with each of these texts.

        The prompt is read once, and the texts grow together. One whose tokens so far are less likely than
        e^_RARE is not followed further: its value is that of these tokens. Raises ContextOverflow.
        """
        decoder = self.decoder
        with torch.inference_mode():
            rows = [self.codec.continuation(text) for text in texts]
            n_most = max(map(len, rows))
            prefix, prompt = self._prompt(request, n_most)
            slots = decoder.slots(1, round_up(len(prompt) + n_most + PAD, BLOCK))
            hidden = decoder.prefill(prefix, slots, 0, prompt)[len(prompt) - 1 : len(prompt)]
            first = torch.log_softmax(decoder.logits(hidden).float(), dim=-1)[0].cpu()
            totals = [float(first[row[0]]) for row in rows]
            active = [at for at, row in enumerate(rows) if len(row) > 1 and totals[at] > _RARE]
            slots.resize(max(1, len(active)), slots.capacity, 1)
            for slot in range(1, len(active)):
                slots.move(0, slot, len(prompt))
            for i in range(1, n_most):
                longer = [k for k, at in enumerate(active) if len(rows[at]) > i and totals[at] > _RARE]
                for slot, k in enumerate(longer):
                    if slot != k:
                        slots.move(k, slot, len(prompt) + i - 1)
                if not (active := [active[k] for k in longer]):
                    break
                tokens = continued(prompt, [rows[at][i - 1] for at in active])
                lengths = torch.full((len(active),), len(prompt) + i - 1)
                logits = decoder.step(prefix, slots, torch.tensor(tokens), lengths)
                logs = torch.log_softmax(logits.float(), dim=-1).cpu()
                for slot, at in enumerate(active):
                    totals[at] += float(logs[slot, rows[at][i]])
            return totals

    def log_probabilities(self, request: Request, output: Sequence[int]) -> torch.Tensor:
        """Return the natural-log probability of every token after the prompt and each `output[:i]`.

        (1 + output, vocabulary), float32. Raises ContextOverflow.
        """
        with torch.inference_mode():
            prefix, prompt = self._prompt(request, len(output))
            return self._log_probabilities(self.decoder, prefix, prompt, tuple(output))

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        return self.decoder.shape.context_length

    def check_length(self, request: Request) -> None:
        """Raise ContextOverflow for a prompt that surely has more tokens than the context."""
        self.codec.check_length(self.render(request), self.context_length)

    def prompt_tokens(self, request: Request) -> tuple[int, ...]:
        """Return the tokens of a request's prompt. Raises ContextOverflow far beyond the context."""
        return self.codec.encode_within(self.render(request), self.context_length)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the plain text whose prompt has exactly these tokens. Raises UsageError if no text has."""
        self.decode(tokens)
        for behind in (tokens, tokens[1:]):  # the second without a first token that every prompt has
            text = self.codec.decode(tuple(behind))
            if text and self.prompt_tokens(Request(0, (), prefill=text)) == tuple(tokens):
                return text
        raise UsageError("no text has exactly these tokens: send the text, or fewer of its tokens")

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text. Raises UsageError if one is not in the vocabulary."""
        size = self.decoder.shape.vocab_size
        if (other := next((token for token in tokens if not 0 <= token < size), None)) is not None:
            raise UsageError(f"the vocabulary has no token {other}")
        return self.codec.decode(tuple(tokens))

    def token_logs(self, tokens: Sequence[int], start: int, n_top: int) -> list[TokenLog]:
        """Return the scores of `tokens[start:]`, and of the likeliest token after them."""
        decoder, tokens = self.decoder, tuple(tokens)
        self.decode(tokens)
        if len(tokens) > self.context_length:
            raise ContextOverflow(f"{len(tokens)} tokens needed, {self.context_length} there")
        first = max(start, 1)
        scores = [] if start else [TokenLog(tokens[0], self.codec.decode(tokens[:1]), None, ())]
        with torch.inference_mode():
            prefix, prompt = self.member.pool.split(self.member.pool.computed(tokens[: first - 1]), tokens)
            hidden = decoder.prefill(prefix, decoder.slots(1, round_up(padded(prompt), BLOCK)), 0, prompt)
            hidden = hidden[first - 1 - (len(tokens) - len(prompt)) : len(prompt)]
            for at in range(0, len(hidden), _HEAD_ROWS):
                logs = torch.log_softmax(decoder.logits(hidden[at : at + _HEAD_ROWS]).float(), dim=-1).cpu()
                scores += self._listed(logs, tokens[first + at :], n_top)
        return scores

    def _listed(self, logs: torch.Tensor, tokens: tuple[int, ...], n_top: int) -> Iterator[TokenLog]:
        """Yield the scores of tokens; behind the last one, of the likeliest token.

        logs: (places, vocabulary).
        """
        top = logs.topk(n_top)
        for i, row in enumerate(logs):
            token = tokens[i] if i < len(tokens) else int(row.argmax())
            pairs = zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True)
            listed = tuple((self.codec.decode((each,)), log) for each, log in pairs)
            yield TokenLog(token, self.codec.decode((token,)), float(row[token]), listed)

    def _prompt(self, request: Request, n_more: int) -> tuple[SharedPrefix, tuple[int, ...]]:
        """Split a prompt that needs room for `n_more` tokens. Raises ContextOverflow."""
        tokens = self.codec.encode(self.render(request))
        if (n_needed := len(tokens) + n_more) > self.decoder.shape.context_length:
            raise ContextOverflow(f"{n_needed} tokens needed, {self.decoder.shape.context_length} there")
        return self.member.pool.split(self.codec.shared(request), tokens)

    def _log_probabilities(
        self, decoder: Decoder, prefix: SharedPrefix, prompt: tuple[int, ...], output: tuple[int, ...]
    ) -> torch.Tensor:
        """Return log-probabilities of the next token, at the end of the prompt and after each output token.

        (1 + output, vocabulary).
        """
        slots = decoder.slots(1, round_up(padded(prompt + output), BLOCK))
        hidden = decoder.prefill(prefix, slots, 0, prompt + continued(prompt, output))
        hidden = hidden[len(prompt) - 1 : len(prompt) + len(output)]
        return torch.log_softmax(decoder.logits(hidden).float(), dim=-1)


class TorchEngine(AnsweringEngine):
    """The engine of a decoder: it answers, scores, and gives attacks access to the weights."""

    def __init__(
        self,
        decoder: Decoder,
        codec: ChatCodec,
        folder: Path,
        tuning: Tuning | None,
        width: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        proven = (autotune.UNPROBED,) if tuning is None else tuning.widths
        widths = tuple(w for w in proven if width is None or w <= width) or proven[:1]
        n_slots = () if tuning is None else tuple(n for n in tuning.n_slots if n < widths[-1])
        # A draft is verified in another slot, so it needs the proof that slots keep the bits.
        max_draft = MAX_DRAFT if tuning is not None and tuning.is_proven else 0
        pass_widths = () if tuning is None else tuning.pass_widths
        self.pool = PrefixPool(decoder, widths, n_slots, max_draft, pass_widths, watch)
        super().__init__(self.pool, self.pool, codec, folder, tuning)
        self._with_gradients: PreTrainedModel | None = None  # the weights once more, for a search
        self.is_adapted, self._watch = False, watch

    def over(self, decoder: Decoder) -> TorchEngine:
        """Return an engine like this one over a decoder of the same weights and arithmetic."""
        return TorchEngine(decoder, self.codec, self.folder, self.tuning, self.width, self._watch)

    # --- access to the weights ------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """See Capabilities."""
        return replace(super().capabilities, weights=self)

    def direction(self, harmful: Sequence[Request], harmless: Sequence[Request]) -> str:
        """Return the text of `find_direction`."""
        return self.find_direction(harmful, harmless).text

    def find_direction(
        self, harmful: Sequence[Request], harmless: Sequence[Request], place: tuple[int, int] | None = None
    ) -> Direction:
        """Find the direction that separates the two kinds (refusal_direction.py). Raises UsageError."""

        def prompts(requests: Sequence[Request]) -> list[tuple[int, ...]]:
            return [placed(self.decoder, self.codec.encode(self.render(request))) for request in requests]

        with torch.inference_mode():
            openings = tuple(
                sorted({self.codec.continuation(text)[0] for text in refusal_direction.OPENINGS})
            )
            return refusal_direction.find(self.decoder, prompts(harmful), prompts(harmless), openings, place)

    def without(self, direction: str) -> TorchEngine:
        """Return this engine with a direction projected out of its residual stream at every addition."""
        decoder = self.decoder.hooked(refusal_direction.projection(direction, self.decoder.device))
        return self._altered(decoder, f"without direction {refusal_direction.digest_of(direction)}")

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return self.decoder.shape.n_layers

    def until(self, n_layers: int) -> TorchEngine:
        """Return an engine of the first layers only, for `state`; its answers have no meaning.

        Raises EngineFailure if there are fewer layers.
        """
        if not 0 < n_layers <= self.decoder.shape.n_layers:
            raise EngineFailure(f"no layer {n_layers}: this model has {self.decoder.shape.n_layers}")
        return self._altered(self.decoder.until(n_layers), f"first {n_layers} layers")

    def _altered(self, decoder: Decoder, change: str) -> TorchEngine:
        engine = self.over(decoder)
        engine.name, engine.numerics = altered(engine.name, change), altered(engine.numerics, change)
        return engine

    def state(self, request: Request) -> torch.Tensor:
        """Return the residual stream after the last layer, at the last prompt token: (hidden,), float32.

        Raises ContextOverflow.
        """
        with torch.inference_mode():
            prefix, prompt = self._prompt(request, 0)
            slots = self.decoder.slots(1, round_up(padded(prompt), BLOCK))
            return self.decoder.prefill(prefix, slots, 0, prompt)[len(prompt) - 1].float().cpu()

    def suffix(self, request: Request, mark: str, target: str, steps: int, seed: int) -> str:
        """Search a text in place of `mark` after which the answer begins with `target`, as JSON (gcg.py)."""
        from heredity.engines.torch import gcg

        if self.is_adapted:
            is_activated = self.decoder.weights.gate is not None
            advice = "an aLoRA cannot be merged" if is_activated else "merge the adapter first"
            raise EngineFailure(f"a search on gradients needs full weights: {advice}")
        if self.decoder.weights.how:
            raise EngineFailure("a search on gradients needs weights in floating point, and these are int8")
        if self._with_gradients is None:
            self._with_gradients = gcg.load(self.folder, self.decoder.device)
        tokenizer = gcg.TokenizerView(self.codec.encode, self.codec.continuation, self.codec.decode)
        before, _, after = self.render(request).partition(mark)
        suffix = gcg.search(self._with_gradients, tokenizer, before, after, target, steps, seed)
        return encode(suffix).decode()

    def close(self) -> None:
        """Free the memory."""
        self._with_gradients = None
        self.pool.close()
        host.trim_memory()
