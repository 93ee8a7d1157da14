"""A trainable causal language model: transformers' own, over packed documents that attend only to themselves.

Linear layers run over all tokens at once, without padding; only attention groups documents into rows. The
head runs only on target positions, a part at a time, so that the logits of a large vocabulary are never held
whole. Tokens that begin every document of a batch, such as those of a system message, are computed once.

Promises: a document's numbers are those of transformers for it by itself, within rounding.
Leaves to others: which weights change (lora.py), and the loss (objectives/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from heredity.core import host
from heredity.core.errors import Unavailable, UsageError, first_line
from heredity.core.host import CPU, Device
from heredity.formats.activation import Gate
from heredity.formats.linear_layers import decoder_of, number_of, settings_of, text_config
from heredity.train.data.batching import PADDING_MULTIPLE, PackedBatch
from heredity.train.kernels import patch
from heredity.train.kernels.attention import causal_attention, row_groups, row_indices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_ROWS = 256  # rows of logits at once, so that they stay in the processor's cache
GRADIENT_ROWS = 1024  # rows whose gradient is summed at once: bfloat16 sums lose small summands
_ATTENTION = "heredity_documents"
# Architectures whose attention takes packed documents; AnyCausalLM has the others.
PACKED = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gemma3")
_PROBED = 12  # tokens of the two texts that are compared when a model is loaded
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest number

_HERE = {"trust_remote_code": False, "local_files_only": True}

# (rows of logits, which rows of the batch they are) -> the sum of their losses
RowLoss = Callable[[torch.Tensor, slice], torch.Tensor]
WeightChange = Callable[[Any], None]
LogitFunction = Callable[[torch.Tensor], torch.Tensor]


def init_model(
    config: Mapping[str, Any],
    seed: int,
    dtype: str,
    kind: Any,
    attention: str,
    change: WeightChange | None = None,
) -> Any:
    """Initialize a model in training mode.

    kind: an AutoModel class of transformers. attention: its attention implementation.
    change: applied to the model while weights are in fp32.
    dtype: "auto" takes bfloat16 if its matmul was measured to be faster than that of float32.
    """
    import transformers

    host.prepare_transformers()
    made = transformers.AutoConfig.for_model(**config)
    chosen = resolve_dtype(made, dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(made, dtype=torch.float32, attn_implementation=attention)
    if change is not None:
        with torch.no_grad():
            change(model)
    model.config.dtype = chosen
    return model.to(getattr(torch, chosen)).train()


def resolve_dtype(config: Any, dtype: str, device: Device = CPU) -> str:
    """The dtype of a model of this configuration: `dtype`, or the faster one for "auto"."""
    if dtype != "auto":
        return dtype
    inner = text_config(config)
    wide = number_of(settings_of(inner), "intermediate_size") or 4 * inner.hidden_size
    return host.choose_dtype(inner.hidden_size, wide, 1024, device)


class CausalLM:
    """transformers' model, with the methods that objectives need."""

    def __init__(self, model: Any, folder: Path, is_fused: bool = False) -> None:
        """is_fused: whether chains of small operations are compiled (kernels/compile.py)."""
        self.model, self.folder, self.is_fused = model, folder, is_fused
        self.gate: Gate | None = None  # of an activated adapter (lora.py)
        patch.patch_norms(model, is_fused)
        patch.patch_attention(model, is_fused)
        if is_fused:
            patch.patch_feed_forward(model)

    @property
    def head(self) -> torch.Tensor:
        """(vocabulary, hidden)"""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the logits, (vocabulary,), or None."""
        return getattr(self.model.get_output_embeddings(), "bias", None)

    def begin(self, is_last: bool) -> None:
        """Called before each microbatch of a step. is_last: whether it is the last one."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states at the target positions: (targets, hidden)."""
        padded = batch.padded
        with self._changing(padded.active):
            states = self.model.model(
                input_ids=padded.tokens[None],
                position_ids=padded.positions[None],
                use_cache=False,
                lengths=padded.lengths,
                n_shared=padded.n_shared,
            ).last_hidden_state.squeeze(0)
        picked: torch.Tensor = states.index_select(0, batch.at)
        return picked

    def _changing(self, active: torch.Tensor | None) -> AbstractContextManager[None]:
        """Let an activated adapter change only these tokens (...) bool; None for all."""
        return nullcontext() if self.gate is None or active is None else self.gate.only(active)

    def loss(self, hidden: torch.Tensor, of_rows: RowLoss, is_narrow: bool = False) -> torch.Tensor:
        """The sum of `of_rows` over all logits, computed a part at a time together with its gradient.

        is_narrow: `of_rows` takes logits in the head's dtype instead of fp32.
        """
        total: torch.Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, self.head, self.bias, of_rows, is_narrow
        )
        return total

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        stops: Iterable[int],
    ) -> list[tuple[int, ...]]:
        """Generate at most `max_new_tokens` tokens after each prompt, the stop token included.

        Samples depend only on the seed. temperature 0: greedy decoding.
        """
        width = max(map(len, prompts))
        device = self.head.device
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        ends = sorted(stops)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with self.generating(), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            generated = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=max_new_tokens,
                pad_token_id=0, eos_token_id=ends,
                **(sampling if temperature else {"do_sample": False}),
            )  # fmt: skip
        rows = [row[width:].tolist() for row in generated]
        cut = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
        return [tuple(row[:n]) for row, n in zip(rows, cut, strict=True)]

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Let the model attend to padded rows, as its `generate` needs."""
        self.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.model.set_attn_implementation(_ATTENTION)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary)"""
        return functional.linear(hidden, self.head, self.bias)


class AnyCausalLM(CausalLM):
    """A model of any architecture, with its own attention: documents are rows, each followed by padding.

    A causal model computes nothing from later tokens, so the padding changes no document, and no mask is
    needed. That holds for rotary and learned positions, ALiBi, windows, experts and recurrent layers. Dropout
    is off, so that a run that resumes ends with the same bits.

    A model whose states depend on later tokens is refused when it is loaded. So is one whose logits are an
    unknown function of its states.
    """

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        super().__init__(model, folder)
        settings = settings_of(model.config)
        self._finished = logit_function(settings)
        self._decoder = decoder_of(model)
        self._limit = number_of(settings, "max_position_embeddings")
        model.eval()  # no dropout; gradients are computed all the same
        self._refuse_other_than_known()

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states at the target positions: (targets, hidden)."""
        batch = batch.unshared
        tokens, places, _ = row_indices(batch.lengths, batch.tokens.device)
        n_tokens = max(batch.lengths)
        if self._limit is not None and n_tokens > self._limit:
            raise UsageError(
                f"An example has {n_tokens:,} tokens, and the context of this model {self._limit:,}. Lower"
                " max_length."
            )
        rows = batch.tokens.index_select(0, tokens)
        active = None if batch.active is None else batch.active.index_select(0, tokens)
        states, start = [], 0
        for group, longest in row_groups(batch.lengths):
            n = len(group) * longest
            part, shape = slice(start, start + n), (len(group), longest)
            woken = None if active is None else active[part].view(shape)[:, : self._limit]
            with self._changing(woken):
                states.append(self._states(rows[part].view(shape)).flatten(0, 1))
            start += n
        return torch.cat(states).index_select(0, places).index_select(0, batch.at)

    def loss(self, hidden: torch.Tensor, of_rows: RowLoss, is_narrow: bool = False) -> torch.Tensor:
        """The sum of `of_rows` over all logits, as of CausalLM."""
        return super().loss(hidden, lambda logits, rows: of_rows(self._finished(logits), rows), is_narrow)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary)"""
        return self._finished(super().logits(hidden))

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Nothing: the model has its own attention anyway."""
        yield

    def _states(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, tokens) -> (rows, tokens, hidden)"""
        # Padding up to a round length may exceed the positions that the model has learned.
        n, cut = rows.shape[1], rows[:, : self._limit]
        found: torch.Tensor = self._decoder(input_ids=cut, use_cache=False).last_hidden_state
        return torch.nn.functional.pad(found, (0, 0, 0, n - found.shape[1]))

    @torch.no_grad()
    def _refuse_other_than_known(self) -> None:
        """Raise Unavailable if later tokens change a state, or if the logits are computed in another way."""
        n_tokens = len(self.head)
        text = torch.arange(1, _PROBED + 1, device=self.head.device)[None] * 7919 % n_tokens
        half = self._states(text[:, : _PROBED // 2])[0]
        states = self._states(text)[0]
        kind = self.model.config.model_type
        if not _is_near(states[: len(half)], half):
            raise Unavailable(
                f"'{kind}' is not causal: a token changes those before it. heredity trains causal language"
                " models of transformers."
            )
        wanted = self.model(input_ids=text, use_cache=False).logits[0]
        if not _is_near(self.logits(states), wanted):
            raise Unavailable(
                f"'{kind}' computes its logits in a way that heredity does not know, so it cannot be trained"
                " here. Train it with another tool, and adopt the result."
            )


def logit_function(settings: Mapping[str, object]) -> LogitFunction:
    """The function on the product of states and head, by the settings of transformers' configurations."""
    cap, divisor, factor = (
        settings.get(name) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale")
    )
    cap = cap or settings.get("logits_soft_cap")  # RecurrentGemma
    if isinstance(cap, float | int) and cap:  # Gemma
        return lambda logits: torch.tanh(logits / cap) * cap
    if isinstance(divisor, float | int) and divisor:  # Granite
        return lambda logits: logits / divisor
    if isinstance(factor, float | int) and factor:  # Cohere
        return lambda logits: logits * factor
    return lambda logits: logits


def _is_near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    allowed = _ROUNDING[wanted.dtype] * float(wanted.abs().max())
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= allowed


def load(folder: Path, dtype: str = "auto", device: Device = CPU) -> CausalLM:
    """Load the safetensors of a folder for training on a device.

    dtype: "auto" takes bfloat16 if its matmul was measured to be faster than that of float32.
    Raises Unavailable for an architecture that transformers does not load, or that is not trained here.
    """
    import transformers

    host.prepare_transformers()
    config = transformers.AutoConfig.from_pretrained(folder, **_HERE)
    inner = text_config(config)
    host.prepare_device(device)
    chosen = resolve_dtype(config, dtype, device)
    if inner.model_type in PACKED:
        transformers.AttentionInterface.register(_ATTENTION, causal_attention)
        model = _loaded(folder, chosen, attn_implementation=_ATTENTION)
        return CausalLM(model.to(device.torch).train(), folder)
    return AnyCausalLM(_loaded(folder, chosen).to(device.torch), folder)


def _loaded(folder: Path, dtype: str, **how: str) -> PreTrainedModel:
    """transformers' model. Raises Unavailable for one that it does not load without remote code."""
    import transformers

    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), **how, **_HERE
        )
    except (ImportError, ValueError, KeyError, NotImplementedError) as error:
        raise Unavailable(f"transformers does not load {folder} for training: {first_line(error)}") from error


def from_config(
    config: Mapping[str, Any], seed: int, dtype: str = "auto", is_fused: bool = False
) -> CausalLM:
    """Initialize a new model of this configuration. Weights depend only on the seed.

    Matrices are normal with standard deviation 0.02. Output projections of attention and feed-forward are
    divided by sqrt(2 * layers), as in GPT-2, so that the residual stream does not grow with depth.
    """
    import transformers

    def shrink(model: Any) -> None:
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight /= (2 * model.config.num_hidden_layers) ** 0.5

    transformers.AttentionInterface.register(_ATTENTION, causal_attention)
    model = init_model(config, seed, dtype, transformers.AutoModelForCausalLM, _ATTENTION, shrink)
    return CausalLM(model, Path(), is_fused)


class _ChunkedLoss(torch.autograd.Function):
    """The loss of LOGIT_ROWS rows of logits at a time, so that all logits are never held.

    Gradients are kept in the head's dtype until GRADIENT_ROWS rows have theirs; these are multiplied at once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        of_rows: RowLoss,
        is_narrow: bool,
    ) -> torch.Tensor:
        wants_hidden, wants_head, wants_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_head = torch.zeros_like(head) if wants_head else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        for first in range(0, len(hidden), GRADIENT_ROWS):
            group = slice(first, min(first + GRADIENT_ROWS, len(hidden)))
            part = functional.pad(hidden[group], (0, 0, 0, (group.start - group.stop) % PADDING_MULTIPLE))
            grad = head.new_empty((len(part) if any(ctx.needs_input_grad) else 0, len(head)))
            grad[group.stop - first :] = 0
            for start in range(0, group.stop - first, LOGIT_ROWS):
                rows = slice(start, min(start + LOGIT_ROWS, group.stop - first))
                with torch.enable_grad():
                    logits = functional.linear(part[rows], head, bias)
                    logits = (logits if is_narrow else logits.float()).requires_grad_()
                    loss = of_rows(logits, slice(first + start, first + rows.stop))
                total += loss.detach()
                if len(grad):
                    grad[rows] = torch.autograd.grad(loss, logits)[0]
                del logits, loss  # before the next ones are made: they are the largest tensors of a step
            if of_hidden is not None:
                of_hidden[group] = (grad @ head)[: group.stop - first]
            if of_head is not None:
                of_head.addmm_(grad.T, part)
            if of_bias is not None:
                of_bias += grad.sum(0, dtype=torch.float32)
            del grad
        ctx.save_for_backward(of_hidden, of_head, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = out.item() if out.is_cpu else out  # on a GPU a number would have to be waited for
        return (*(None if each is None else each * scale for each in ctx.saved_tensors), None, None)
