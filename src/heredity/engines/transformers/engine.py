"""Any causal language model that transformers loads without remote code: slower than `torch`.

Promises: an answer depends on its request only. Rows are decoded together (rows.py) if a probe finds the same
bits in any slot and company, otherwise each by itself (single.py). `numerics` carries versions, dtype, width
and a fingerprint of the arithmetic.
Leaves to others: attacks on weights, which only the torch engine has.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from heredity.core import host
from heredity.core.errors import ContextOverflow, EngineFailure
from heredity.core.files import write_atomic
from heredity.core.host import CPU, Device
from heredity.core.progress import Watch, phase
from heredity.core.records import Model, Record, Reply, Request
from heredity.engines import base_folder
from heredity.engines.chat.codec import AnswerReader, ChatCodec
from heredity.engines.chat.folder import has_tokenizer
from heredity.engines.protocols import Listener, TokenScores
from heredity.engines.transformers import loading, rows
from heredity.engines.transformers.activated import Activation
from heredity.engines.transformers.adapter import apply_adapter
from heredity.engines.transformers.session import GenerateSession
from heredity.engines.transformers.single import SingleBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REPORTS_PHASES = True
_WITNESS = 24  # tokens behind the fingerprint


class RowTuning(Record, frozen=True):
    """The result of the probe of a model on a machine."""

    numerics: str
    machine: str
    width: int


def load(
    model: Model,
    folder: Path,
    tuning: Path | None = None,
    device: Device | None = None,
    watch: Watch | None = None,
) -> TransformersEngine:
    """Load a recorded model. An adapter is applied to its base.

    tuning: None measures nothing; the engine then answers one request at a time.
    device: where it computes; None: `host.choose_device`.
    watch: gets the measuring of the width.
    """
    is_probed, where = tuning is not None, host.choose_device(device)
    if model.format != "adapter":
        return open_folder(folder, tuning, is_probed=is_probed, device=where, watch=watch)
    base = base_folder(model, folder)
    return open_folder(base, tuning, is_probed=is_probed, adapter=folder, device=where, watch=watch)


def open_folder(
    folder: Path,
    tuning: Path | None = None,
    dtype: str | None = None,
    is_probed: bool = True,
    adapter: Path | None = None,
    device: Device = CPU,
    watch: Watch | None = None,
) -> TransformersEngine:
    """Load the safetensors in a folder, with the adapter of another folder.

    tuning: a file that keeps the result of the probe.
    dtype: "float32" or "bfloat16" instead of the faster one.
    is_probed: False answers one request at a time.
    device: where it computes. watch: as of `load`.
    Raises Unavailable for a model that transformers does not load here, Damaged for missing weights.
    """
    host.keep_freed_memory()
    host.prepare_device(device)
    config = loading.read_config(folder)
    chosen = dtype or loading.faster_dtype(config, device)
    model = loading.load_model(folder, config, getattr(torch, chosen), device)
    activation = None if adapter is None else apply_adapter(model, adapter, folder)
    source = folder if adapter is None or not has_tokenizer(adapter) else adapter
    engine = TransformersEngine(model, ChatCodec(source), folder, activation=activation)
    return engine.batched(_proven_width(engine, tuning, watch)) if is_probed else engine


def _proven_width(engine: TransformersEngine, path: Path | None, watch: Watch | None) -> int:
    """Return the width kept at `path` if it was found in this arithmetic, else that of a new probe."""
    numerics, machine = engine.numerics, host.machine_name()
    if path is not None and path.exists():
        with suppress(msgspec.DecodeError):  # it can be measured again
            kept = msgspec.json.decode(path.read_bytes(), type=RowTuning)
            if kept.numerics == numerics and kept.machine == machine:
                return kept.width
    with torch.inference_mode(), phase(watch, "measuring widths"):
        width = rows.WIDTH if rows.prove(engine.model) else 1
    if path is not None:
        new = RowTuning(numerics, machine, width)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(new)))
    return width


class TransformersEngine:
    """The engine of a model of transformers: it answers and scores."""

    def __init__(
        self,
        model: PreTrainedModel,
        codec: ChatCodec,
        folder: Path,
        width: int = 1,
        activation: Activation | None = None,
    ) -> None:
        """activation: what wakes an activated adapter of the model."""
        self._model: PreTrainedModel | None = model
        self._activation = activation
        self.codec, self.folder, self.width = codec, folder, width
        self._reader = AnswerReader(codec, codec.stops(folder))
        self.context_length = loading.context_length(model.config)
        self._has_short_head = "logits_to_keep" in inspect.signature(model.forward).parameters
        dtype = str(model.dtype).removeprefix("torch.")
        versions = f"transformers {loading.version()} torch {torch.__version__} {dtype}"
        with torch.inference_mode():
            fingerprint = self._fingerprint()
        where = Device.parse(str(model.device)).suffix
        self.numerics = f"{versions} width {width} {fingerprint}{where}"
        self.name = f"{versions} {model.config.model_type} width {width} arithmetic {fingerprint}{where}"

    @property
    def is_base(self) -> bool:
        """Whether the model has no chat template."""
        return self.codec.is_base

    @property
    def model(self) -> PreTrainedModel:
        """The model. Raises EngineFailure after `close`."""
        if self._model is None:
            raise EngineFailure("this engine is closed")
        return self._model

    @property
    def boundary(self) -> str:
        """The token between texts, as text: an empty context consists of it."""
        return self.codec.boundary

    def render(self, request: Request) -> str:
        """Return the full prompt of a request, prefill included."""
        return self.codec.render(request)

    def check_length(self, request: Request) -> None:
        """Raise ContextOverflow for a prompt that surely has more tokens than the context."""
        self.codec.check_length(self.render(request), self.context_length)

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        """Answer a stream of requests."""
        return self._session(requests, None)

    def stream(self, requests: Iterable[Request | None], listener: Listener) -> Iterator[Reply]:
        """Answer a stream of requests and report the answers while they grow."""
        return self._session(requests, listener)

    def _session(self, requests: Iterable[Request | None], listener: Listener | None) -> Iterator[Reply]:
        awake = self._activation
        is_joint = self.width > 1
        batch = rows.RowBatch(self.model, self.width, awake) if is_joint else SingleBatch(self.model, awake)
        with torch.inference_mode():
            session = GenerateSession(
                batch, self.codec, self._reader, self.context_length, requests, listener
            )
            yield from session.run()

    # --- scores ---------------------------------------------------------------------------------------

    def score(self, request: Request, continuations: Sequence[str]) -> list[list[float]]:
        """Return the natural-log probability of every token of each continuation of the prompt.

        Raises ContextOverflow.
        """
        return [one.logs for one in self.scored(request, continuations)]

    def scored(self, request: Request, continuations: Sequence[str]) -> list[TokenScores]:
        """Return the scores, and whether greedy decoding would give each continuation."""
        texts = [self.codec.continuation(text) for text in continuations]
        prompt = self.codec.encode(self.render(request))
        n_needed, context = len(prompt) + max(map(len, texts)), self.context_length
        if context is not None and n_needed > context:
            raise ContextOverflow(f"{n_needed} tokens needed, {context} there")
        with torch.inference_mode():
            if all(len(text) == 1 for text in texts):
                logs = self._log_probabilities(prompt, ())
                return [_scores(logs, text) for text in texts]
            return [_scores(self._log_probabilities(prompt, text[:-1]), text) for text in texts]

    def tokens_behind(self, request: Request, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of the prompt, and those of a text that follows it."""
        return self.codec.encode(self.render(request)), self.codec.continuation(text)

    def log_probabilities(self, request: Request, output: Sequence[int]) -> torch.Tensor:
        """Return the natural-log probability of every token after the prompt and each `output[:i]`.

        (1 + output, vocabulary), float32.
        """
        with torch.inference_mode():
            return self._log_probabilities(self.codec.encode(self.render(request)), tuple(output))

    def _log_probabilities(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> torch.Tensor:
        """Return log-probabilities of the next token, at the end of the prompt and after each output token.

        (1 + output, vocabulary), float32.
        """
        if self._activation is None:
            return self._all_changed(prompt, output)
        with self._activation.over(prompt, len(output)):
            return self._all_changed(prompt, output)

    def _all_changed(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> torch.Tensor:
        """Return the same. An activated adapter changes every token, except where its gate is set."""
        ids = torch.tensor([prompt + output], device=self.model.device)
        n_kept = 1 + len(output)
        short = {"logits_to_keep": n_kept} if self._has_short_head else {}
        logits = self.model(ids, attention_mask=torch.ones_like(ids), use_cache=False, **short).logits[0]
        return torch.log_softmax(logits[-n_kept:].float(), dim=-1).cpu()

    def batched(self, width: int) -> TransformersEngine:
        """Return this engine with another number of rows that are decoded together."""
        return TransformersEngine(self.model, self.codec, self.folder, width, self._activation)

    def _fingerprint(self) -> str:
        n_tokens = int(self.model.get_input_embeddings().weight.shape[0])
        tokens = tuple(at * 7919 % n_tokens for at in range(1, _WITNESS + 1))
        logs = self._all_changed(tokens[:-8], tokens[-8:])
        return hashlib.sha256(logs.numpy().tobytes()).hexdigest()[:16]

    def close(self) -> None:
        """Free the memory."""
        self._model = None
        host.trim_memory()


def _scores(logs: torch.Tensor, text: tuple[int, ...]) -> TokenScores:
    tokens = torch.tensor(text)
    is_greedy = bool((logs.argmax(dim=1) == tokens).all())
    return TokenScores(logs.gather(1, tokens[:, None])[:, 0].tolist(), is_greedy)
