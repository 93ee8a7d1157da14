"""A trainable causal language model over packed documents, and what of it is trained: all, or LoRA adapters.

Linear layers run over all tokens at once, without padding; only attention groups documents into rows. The
head runs only on target positions, a part at a time, so that the logits of a large vocabulary are never held
whole. Tokens that begin every document of a batch, such as those of a system message, are computed once.

Sources: LoRA, Hu et al. 2021 (2106.09685); rank-stabilized scale alpha / sqrt(r), Kalajdzievski 2023
(2312.03732).

Promises: a document's numbers are those of transformers for it by itself, within rounding. A new adapter
changes nothing; its matrices depend only on the seed. Its files are as PEFT writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from heredity.core import host
from heredity.core.errors import Unavailable, UsageError, first_line
from heredity.core.host import CPU, Device
from heredity.engines.chat import Document
from heredity.formats.linear_layers import (
    decoder_of,
    is_linear,
    is_transposed,
    linear_layers,
    number_of,
    settings_of,
    shape_of,
    text_config,
)
from heredity.formats.weights import Gate
from heredity.train import kernels
from heredity.train.data.chat import TokenizedExample
from heredity.train.kernels import causal_attention, row_groups, row_indices, token_places
from heredity.train.models.shapes import LINEAR_LAYERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READ_AS_EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")  # by PEFT 0.21


@dataclass(frozen=True)
class FullFinetune:
    """All weights are trainable."""

    FORMAT: ClassVar[Literal["safetensors"]] = "safetensors"  # of the files that `save` writes

    def open(self, network: CausalLM, seed: int) -> list[tuple[str, nn.Parameter]]:  # noqa: ARG002
        """Make all weights trainable and return them by name."""
        network.model.requires_grad_(True)
        return list(network.model.named_parameters())

    def n_trainable(self, network: CausalLM) -> int:
        """The number of trainable parameters."""
        return sum(each.numel() for each in network.model.parameters())

    def save(self, network: CausalLM, out: Path) -> None:
        """Write the whole model as safetensors."""
        network.model.save_pretrained(out, max_shard_size="5GB")


@dataclass(frozen=True)
class LowRankAdapters:
    """Adapters of rank `rank` on the linear layers that `target_modules` names, as in PEFT.

    invocation: the tokens that wake an activated LoRA; () for one that is always awake.
    """

    FORMAT: ClassVar[Literal["adapter"]] = "adapter"

    rank: int = 16
    alpha: float = 16.0
    use_rslora: bool = True
    target_modules: tuple[str, ...] = LINEAR_LAYERS
    invocation: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def open(self, network: CausalLM, seed: int) -> list[tuple[str, nn.Parameter]]:
        """Freeze the model, add adapters and return their weights. Raises UsageError for unknown modules."""
        model = network.model
        names = self._adapted(model)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        network.gate = Gate() if self.invocation else None
        for full_name in names:
            parent, _, name = full_name.rpartition(".")
            owner = model.get_submodule(parent)
            child = owner.get_submodule(name)
            setattr(owner, name, LoraLinear(child, self.rank, self.scale, generator, network.gate))
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def _adapted(self, model: PreTrainedModel) -> list[str]:
        """The names of the layers that get an adapter.

        An architecture that has other linear layers than the default ones gets an adapter on all of its own.
        In a mixture of experts the feed-forward layers get none, since PEFT reads their names as the experts.
        """
        names = {id(module): name for name, module in model.named_modules()}
        targets = [
            f"{names[id(parent)]}.{name}".removeprefix(".")
            for parent in model.modules()
            for name, child in parent.named_children()
            if name in self.target_modules and is_linear(child)
        ]
        missing = set(self.target_modules) - {name.rpartition(".")[2] for name in targets}
        has_experts = any(".experts." in name for name, _ in model.named_parameters())
        if not missing and not has_experts:
            return targets
        left_out = _READ_AS_EXPERTS if has_experts else ()
        layers = [name for name in linear_layers(model) if name.rpartition(".")[2] not in left_out]
        if self.target_modules == LINEAR_LAYERS and layers:
            return layers
        there = sorted({name.rpartition(".")[2] for name in layers})
        missing |= set(self.target_modules) - set(there)
        if not missing:
            return targets
        raise UsageError(
            f"The model has no linear layer '{min(missing)}' for an adapter. It has: {', '.join(there)}.",
            code="unknown-name",
        )

    def n_trainable(self, network: CausalLM) -> int:
        """The number of parameters that the adapters will have. Call it before `open`."""
        layers = [network.model.get_submodule(name) for name in self._adapted(network.model)]
        return sum(self.rank * sum(shape_of(each)) for each in layers)

    def save(self, network: CausalLM, out: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json, as PEFT does."""
        from safetensors.torch import save_file

        tensors, names, is_turned = dict[str, torch.Tensor](), set[str](), False
        for name, module in _lora_layers(network.model):
            names.add(name.rpartition(".")[2])
            is_turned = is_turned or module.is_transposed
            tensors[f"base_model.model.{name}.lora_A.weight"] = module.lora_a.detach().float().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = module.lora_b.detach().float().contiguous()
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.use_rslora,
            "target_modules": sorted(names),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            **({"fan_in_fan_out": True} if is_turned else {}),
            **({"alora_invocation_tokens": [*self.invocation]} if self.invocation else {}),
        }
        (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


Trainable = FullFinetune | LowRankAdapters


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter: x W' + b + scale * (x A') B'.

    gate: of an activated adapter, which changes some of the rows.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        scale: float,
        generator: torch.Generator,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.base, self.scale, self.is_transposed = base, scale, is_transposed(base)
        (n_in, n_out), weight = shape_of(base), base.get_parameter("weight").detach()
        bound = 1 / math.sqrt(n_in)  # kaiming_uniform with a = sqrt(5), as in PEFT
        initial = (torch.rand((rank, n_in), generator=generator) * 2 - 1) * bound
        self.lora_a = nn.Parameter(initial.to(weight))
        self.lora_b = nn.Parameter(weight.new_zeros((n_out, rank)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)"""
        rows, weight = x.reshape(-1, x.shape[-1]), self.base.get_parameter("weight")
        changed = None if self.gate is None else self.gate.rows
        out: torch.Tensor = _LoraFunction.apply(  # type: ignore[no-untyped-call]
            rows,
            weight.t() if self.is_transposed else weight,
            self.base.bias,
            self.lora_a,
            self.lora_b,
            self.scale,
            None if changed is None else changed.reshape(-1, 1).to(x.dtype),
        )
        return out.view(*x.shape[:-1], -1)


class _LoraFunction(torch.autograd.Function):
    """The layer and its adapter as matmuls that accumulate, so that no sum is a pass of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        changed: torch.Tensor | None,
    ) -> torch.Tensor:
        low = functional.linear(x, a)
        low = low if changed is None else low.mul_(changed)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale, ctx.changed = scale, changed
        return functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        of_low = (out @ b).mul_(ctx.scale)
        of_low = of_low if ctx.changed is None else of_low.mul_(ctx.changed)
        of_x = torch.addmm(of_low @ a, out, weight) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.T @ x, (out.T @ low).mul_(ctx.scale), None, None


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


PADDING_MULTIPLE = 32  # tokens; every new matmul size costs time and memory to set up
MIN_SHARED = 16  # tokens; a shorter shared beginning saves less than copying its keys and values costs
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


class PackedBatch(NamedTuple):
    """Documents packed end to end, with their targets.

    tokens, positions: (tokens,) int64; positions start at 0 in each document.
    lengths: tokens of each document, in order, with the shared ones.
    n_shared: the first tokens, which begin every document and are held once. The rest of each follows.
    at: (targets,) the positions whose output predicts a target. targets: (targets,) token ids.
    document: (targets,) the document of each target.
    has_rejected: each document is followed by its rejected version.
    images: (documents, 3, side, side) float; the documents are their captions.
    active: (tokens,) bool, those that an activated adapter changes; None for all.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    at: torch.Tensor
    targets: torch.Tensor
    document: torch.Tensor
    has_rejected: bool = False
    images: torch.Tensor | None = None
    active: torch.Tensor | None = None
    n_shared: int = 0

    @property
    def n_documents(self) -> int:
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents: shared ones count in each."""
        return sum(self.lengths)

    @property
    def unshared(self) -> PackedBatch:
        """The same documents, each held whole."""
        if not self.n_shared:
            return self
        held = torch.tensor(token_places(self.lengths, self.n_shared), device=self.tokens.device)
        lengths = torch.tensor(self.lengths, device=self.at.device)
        n_before = torch.arange(self.n_documents, device=self.at.device) * self.n_shared
        starts = (lengths.cumsum(0) - lengths)[self.document]
        at = torch.where(self.at < self.n_shared, self.at + starts, self.at + n_before[self.document])
        return self._replace(
            tokens=self.tokens[held], positions=self.positions[held], at=at, n_shared=0,
            active=None if self.active is None else self.active[held],
        )  # fmt: skip

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device."""
        images, active = (None if each is None else each.to(device) for each in (self.images, self.active))
        tokens, positions, at, targets, document = (
            each.to(device) for each in (self.tokens, self.positions, self.at, self.targets, self.document)
        )
        return self._replace(
            tokens=tokens, positions=positions, at=at, targets=targets, document=document,
            images=images, active=active,
        )  # fmt: skip

    @property
    def padded(self) -> PackedBatch:
        """The batch padded to a multiple of PADDING_MULTIPLE tokens, by one document without targets.

        If tokens are shared, the last document is padded instead. So the network has to be causal then.
        """
        n = -len(self.tokens) % PADDING_MULTIPLE
        if not n:
            return self
        filler = torch.arange(n, device=self.positions.device)
        lengths = (*self.lengths, n)
        if self.n_shared:
            *others, last = self.lengths
            filler, lengths = filler + last, (*others, last + n)
        return self._replace(
            tokens=torch.cat([self.tokens, torch.zeros_like(filler)]),
            positions=torch.cat([self.positions, filler]),
            lengths=lengths,
            active=None if self.active is None else functional.pad(self.active, (0, n)),
        )


def collate(examples: Sequence[TokenizedExample]) -> PackedBatch:
    """Pack examples end to end. A beginning that all of them have is held once."""
    has_rejected = any(e.rejected is not None for e in examples)
    documents: list[Document] = []
    for example in examples:
        documents += [example.document, *([example.rejected] if example.rejected is not None else [])]
    n_shared = _shared_tokens(examples, documents)
    tokens = list(documents[0].tokens[:n_shared])
    positions = list(range(n_shared))
    at: list[int] = []
    targets: list[int] = []
    document: list[int] = []
    for number, (ids, is_learned) in enumerate(documents):
        offset = len(tokens) - n_shared
        learned = [i for i in range(1, len(ids)) if is_learned[i]]
        at += [i - 1 if i <= n_shared else offset + i - 1 for i in learned]
        targets += [ids[i] for i in learned]
        document += [number] * len(learned)
        tokens += ids[n_shared:]
        positions += range(n_shared, len(ids))
    columns = (tokens, positions, at, targets, document)
    t, p, a, y, d = (torch.tensor(each, dtype=torch.long) for each in columns)
    lengths = tuple(len(ids) for ids, _ in documents)
    active = _active(examples, n_shared)
    return PackedBatch(t, p, lengths, a, y, d, has_rejected, active=active, n_shared=n_shared)


def _shared_tokens(examples: Sequence[TokenizedExample], documents: Sequence[Document]) -> int:
    """How many tokens all documents begin with, those that an activated adapter changes excluded; or 0."""
    if len(documents) < 2:
        return 0
    low, high = min(each.tokens for each in documents), max(each.tokens for each in documents)
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    if any(example.active_from is not None for example in examples):
        n = min(n, *(example.active_from or 0 for example in examples))
    return n if n >= MIN_SHARED else 0


def _active(examples: Sequence[TokenizedExample], n_shared: int) -> torch.Tensor | None:
    """The tokens that an activated adapter changes; None if no example is one of such an adapter."""
    if all(example.active_from is None for example in examples):
        return None
    starts = [(example.n_tokens, example.active_from or 0) for example in examples]
    parts = [torch.arange(n_shared, n) >= start for n, start in starts]
    return torch.cat([torch.zeros(n_shared, dtype=torch.bool), *parts])


class CausalLM:
    """transformers' model, with the methods that objectives need."""

    def __init__(self, model: Any, folder: Path, is_fused: bool = False) -> None:
        """is_fused: whether chains of small operations are compiled."""
        self.model, self.folder, self.is_fused = model, folder, is_fused
        self.gate: Gate | None = None  # of an activated adapter
        kernels.patch_norms(model, is_fused)
        kernels.patch_attention(model, is_fused)
        if is_fused:
            kernels.patch_feed_forward(model)

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
            is_active = None if active is None else active[part].view(shape)[:, : self._limit]
            with self._changing(is_active):
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
        states: torch.Tensor = self._decoder(input_ids=cut, use_cache=False).last_hidden_state
        return torch.nn.functional.pad(states, (0, 0, 0, n - states.shape[1]))

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


def _is_near(logits: torch.Tensor, wanted: torch.Tensor) -> bool:
    allowed = _ROUNDING[wanted.dtype] * float(wanted.abs().max())
    return logits.shape == wanted.shape and float((logits - wanted).abs().max()) <= allowed


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
