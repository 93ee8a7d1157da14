"""A decoder's shape and weights, read from a folder of safetensors: fused, in one dtype, ready to multiply.

Promises: only safetensors and JSON are opened; an architecture that is not known here is refused by name.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch.nn import functional

from heredity.core.errors import Damaged, Refused, Unavailable
from heredity.core.progress import Watch, phase
from heredity.formats import int8
from heredity.formats.architectures import ARCHITECTURES, ENCODERS, ExpertNames
from heredity.formats.int8 import Linear

# An activated LoRA (aLoRA): its update acts on a text from the last occurrence of its invocation on. The
# tokens of the invocation are among those that it changes. Keys, values and states before it are those of the
# base. Without an invocation in the prompt the adapter stays off. An answer that repeats the invocation moves
# nothing: the prompt decides, as in PEFT 0.21. Source: Greenewald et al. 2025 (2504.12397).


def find_last(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    """Return where the last occurrence of `part` in `tokens` begins; None if it has none."""
    part, n = tuple(part), len(part)
    for start in range(len(tokens) - n, -1, -1):
        if tuple(tokens[start : start + n]) == part:
            return start
    return None


class Gate(threading.local):
    """Which rows of this thread's pass an activated adapter changes: all of them, but in `only` some."""

    def __init__(self) -> None:
        self._rows: torch.Tensor | None = None
        self._is_shut = False

    @property
    def rows(self) -> torch.Tensor | None:
        """(..., 1) bool, the rows that are changed; None for all."""
        return self._rows

    def add(self, out: torch.Tensor, change: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return `out` plus a change where the gate is open; other rows keep every bit.

        The change is computed for all rows of a pass or for none. A smaller matmul could sum in another
        order, and a row's numbers would depend on its batch. `out` (..., rows, columns) may hold only the
        last of the rows, as a step behind a prompt does.
        """
        if self._is_shut:
            return out
        changed = out + change()
        if self._rows is None:
            return changed
        return torch.where(self._rows[..., -out.shape[-2] :, :], changed, out)

    @contextmanager
    def only(self, rows: torch.Tensor) -> Iterator[None]:
        """Open the gate for these rows (...) bool only, until the end of the block."""
        before = self._rows, self._is_shut
        self._rows, self._is_shut = rows[..., None], not bool(rows.any())
        try:
            yield
        finally:
            self._rows, self._is_shut = before


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TILES = (8, 4, 2, 1)  # rows; more than 8 waste work where few rows share an expert
_STEADY: dict[tuple[int, int, str, torch.dtype, torch.device], int] = {}


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen and weighted.

    is_normed: the weights of the chosen experts sum to 1. is_sigmoid: a weight is the sigmoid of the expert's
    own logit and scales the expert's input; otherwise it is its softmax and scales the output.
    """

    n_chosen: int
    is_normed: bool = False
    is_sigmoid: bool = False

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and experts of each row: (rows, n_chosen) each. logits: (rows, experts)."""
        if self.is_sigmoid:
            best, chosen = torch.topk(logits, self.n_chosen, dim=-1)
            return torch.sigmoid(best.float()).to(logits.dtype), chosen
        best, chosen = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), self.n_chosen, dim=-1)
        if self.is_normed:
            best = best / best.sum(dim=-1, keepdim=True)
        return best.to(logits.dtype), chosen


@dataclass(frozen=True, slots=True)
class Expert:
    """One gated MLP: `gate_up` is a fused matmul."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden)"""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a layer. tile: rows of a matmul."""

    router: Linear
    each: Sequence[Expert]
    routing: Routing
    tile: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden)"""
        weights, chosen = self.routing.choose(self.router(x))
        order = chosen.flatten().argsort(stable=True)  # by expert, then by row
        rows, scales = order // self.routing.n_chosen, weights.flatten()[order, None]
        n_rows = torch.bincount(chosen.flatten(), minlength=len(self.each)).tolist()
        out, start = torch.zeros_like(x), 0
        for expert, n in zip(self.each, n_rows, strict=True):
            for first in range(start, start + n, self.tile):
                at = slice(first, min(first + self.tile, start + n))
                # A row is once in a tile: the order of these sums is that of the experts.
                out.index_add_(0, rows[at], self._weighted(expert, x[rows[at]], scales[at]))
            start += n
        return out

    def _weighted(self, expert: Expert, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return the part of an expert in the sums of at most `tile` rows."""
        if self.routing.is_sigmoid:
            return expert(_filled(x * scales, self.tile))[: len(x)]
        return expert(_filled(x, self.tile))[: len(x)] * scales


def _filled(x: torch.Tensor, n: int) -> torch.Tensor:
    """Return x with rows of zeros appended up to n."""
    return x if len(x) == n else torch.cat([x, x.new_zeros(n - len(x), x.shape[1])])


def steady_tile(expert: Expert, router: torch.Tensor, how: str) -> int:
    """Return the largest tile in which a row has the same bits at every place, among rows and among zeros.

    router: its matrix (experts, hidden), of the dtype and on the device of the rows. how: the kind of matmul.
    Experts of one shape and kind share the result.
    """
    n_inner = expert.gate_up(router[:1]).shape[1] // 2
    key = (router.shape[1], n_inner, how, router.dtype, router.device)
    if key not in _STEADY:
        drawn = torch.randn((TILES[0], router.shape[1]), generator=torch.Generator().manual_seed(1))
        x = drawn.to(router.device, router.dtype)
        _STEADY[key] = next(tile for tile in TILES if tile == 1 or _is_steady(expert, x[:tile]))
    return _STEADY[key]


def _is_steady(expert: Expert, x: torch.Tensor) -> bool:
    usual = expert(x)
    for place in range(len(x)):
        alone = torch.zeros_like(x)
        alone[place] = x[0]
        turned = expert(x.roll(place, 0)).roll(-place, 0)
        if not (torch.equal(turned, usual) and torch.equal(expert(alone)[place], usual[0])):
            return False
    return True


NOT_ROTATED = 2  # after the rotations of global and of windowed layers
Rope = tuple[torch.Tensor, torch.Tensor]  # inverse frequencies (rotated channels / 2,): global, windowed


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The shape of a decoder, in the words of transformers' configurations."""

    model_type: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int  # of the MLP
    vocab_size: int
    context_length: int  # tokens
    rms_norm_eps: float
    attention_scale: float  # factor on the scores
    windows: tuple[int, ...]  # by layer: the attention window in tokens, 0 for all tokens
    rotations: tuple[int, ...]  # by layer: the index of its rotation, or NOT_ROTATED
    embedding_scale: float  # factor on the embeddings
    is_gemma: bool
    residual_scale: float = 1.0  # factor on what a layer adds
    logits_scale: float = 1.0  # divisor of the logits
    routing: Routing | None = None  # of the experts, if there are any
    has_chunks: bool = False  # windows begin at multiples of their size, and do not move with the query
    has_rotated_norm: bool = False  # rotated queries and keys are normed, without weights
    temperature: tuple[float, float] | None = None  # of layers that are not rotated: tokens a step, strength


def with_own_settings(shape: DecoderShape, config: PreTrainedConfig) -> DecoderShape:
    """Return a shape with the settings that only its architecture has. Others are left as they are."""
    chunk = int(setting(config, "attention_chunk_size", 0))
    windows = shape.windows
    if chunk:
        windows = tuple(chunk if kind == "chunked_attention" else 0 for kind in config.layer_types)
    is_rotated = setting(config, "no_rope_layers", [1] * len(windows))[: len(windows)]  # 0: it is not
    kinds = zip(windows, is_rotated, strict=True)
    return replace(
        shape,
        context_length=_context_length(config, shape.context_length),
        attention_scale=float(setting(config, "attention_multiplier", shape.attention_scale)),
        windows=windows,
        rotations=tuple(int(bool(size)) if turns else NOT_ROTATED for size, turns in kinds),
        embedding_scale=float(setting(config, "embedding_multiplier", shape.embedding_scale)),
        residual_scale=float(setting(config, "residual_multiplier", 1.0)),
        logits_scale=float(setting(config, "logits_scaling", 1.0)),
        routing=_routing(config),
        has_chunks=chunk > 0,
        has_rotated_norm=setting(config, "use_qk_norm", False),
        temperature=_temperature(config),
    )


def _temperature(config: PreTrainedConfig) -> tuple[float, float] | None:
    if not setting(config, "attn_temperature_tuning", False):
        return None
    return float(config.floor_scale), float(config.attn_scale)


def _routing(config: PreTrainedConfig) -> Routing | None:
    names = ARCHITECTURES[config.model_type].experts
    if names is None:
        return None
    is_normed = names.is_normed or setting(config, "norm_topk_prob", False)
    return Routing(int(config.num_experts_per_tok), is_normed, names.is_sigmoid)


def _context_length(config: PreTrainedConfig, usual: int) -> int:
    """Return the longest text in tokens.

    LongRoPE rotates a text by other frequencies once it is longer than in the first training: all of it, also
    what is cached. Texts up to there have one rotation.
    """
    rope = config.rope_parameters
    if rope.get("rope_type") != "longrope":
        return usual
    return min(int(rope["original_max_position_embeddings"]), usual)


CONFIG = "config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Setting = TypeVar("Setting")
KNOWN = tuple(ARCHITECTURES)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: norms are (hidden_size,) vectors, None if missing; `qkv` and `gate_up` are fused matmuls."""

    norm_attention: torch.Tensor | None
    qkv: Linear
    norm_q: torch.Tensor | None
    norm_k: torch.Tensor | None
    out: Linear
    norm_attention_out: torch.Tensor | None
    norm_mlp: torch.Tensor | None
    gate_up: Linear | None  # None if only experts compute the MLP
    down: Linear | None
    norm_mlp_out: torch.Tensor | None
    experts: Experts | None = None
    norm_rotated: torch.Tensor | None = None  # of queries and keys after their rotation: (head_dim,)

    def mlp(self, x: torch.Tensor, is_gelu: bool) -> torch.Tensor:
        """(rows, hidden) -> (rows, hidden)"""
        routed = None if self.experts is None else self.experts(x)
        if self.gate_up is None or self.down is None:
            return torch.zeros_like(x) if routed is None else routed
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        gate = functional.gelu(gate, approximate="tanh") if is_gelu else functional.silu(gate)
        out = self.down(gate * up)
        return out if routed is None else out + routed


class RowMatrix(Protocol):
    """A matrix with access to its rows: a tensor, or one that is converted row by row."""

    def __getitem__(self, at: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Weights:
    """The weights of a decoder, ready to multiply."""

    shape: DecoderShape
    embedding: RowMatrix  # (vocab_size, hidden_size)
    blocks: Sequence[Block]
    norm: torch.Tensor
    head: Linear
    rope: Rope
    rope_scale: tuple[float, float]  # factors on cos and sin
    how: str = ""  # how matrices are multiplied, if not in their own dtype
    base: Weights | None = None  # the base of an adapter: held, so that it stays resident
    invocation: tuple[int, ...] = ()  # the tokens from which on an activated adapter changes a row
    gate: Gate | None = None  # of an activated adapter: which rows of a pass it changes


ON_CPU = torch.device("cpu")
_RESIDENT: WeakValueDictionary[tuple[Path, torch.dtype, torch.device], Weights] = WeakValueDictionary()


def resident(
    folder: Path, dtype: torch.dtype, device: torch.device = ON_CPU, watch: Watch | None = None
) -> Weights:
    """Read weights once: while they are in use, every caller gets the same object."""
    weights = _RESIDENT.get((folder, dtype, device))
    if weights is None:
        weights = _RESIDENT[folder, dtype, device] = read_weights(folder, dtype, device, watch)
    return weights


def read_weights(
    folder: Path, dtype: torch.dtype, device: torch.device = ON_CPU, watch: Watch | None = None
) -> Weights:
    """The weights in `folder` (config.json and *.safetensors), as `dtype`, read straight onto the device.

    watch: gets the count of the layers.
    Raises Unavailable for an architecture that is not one of KNOWN, Damaged for a config.json that makes no
    sense and for missing tensors.
    """
    shape, rope, rope_scale, is_tied = read_shape(folder)
    files = TensorFiles(folder, dtype, device)
    embedding = files.read(EMBEDDING)
    check_hidden_size(folder, shape, embedding)
    with phase(watch, "loading layers", n_total=shape.n_layers) as meter:
        blocks = tuple(meter.each(range(shape.n_layers), lambda i: block(shape, files, i)))
    head = linear(embedding if is_tied else files.read(HEAD))
    rope = rope[0].to(device), rope[1].to(device)
    norm, words = norm_of(shape, files), how(shape, files)
    return Weights(shape, embedding, blocks, norm, head, rope, rope_scale, words)


def read_shape(folder: Path) -> tuple[DecoderShape, Rope, tuple[float, float], bool]:
    """Read config.json: the shape, the rotary settings, and whether the head is the embedding."""
    config = read_config(folder)
    with _sense(folder / CONFIG):
        shape = _shape(config)
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        parameters = config.rope_parameters
        if is_one := "rope_theta" in parameters or "rope_type" in parameters:
            parameters = {"full_attention": parameters, "sliding_attention": parameters}
        is_partial = "partial_rotary_factor" in ARCHITECTURES[shape.model_type].settings
        ropes = []
        for kind in ("full_attention", "sliding_attention"):
            kind = kind if parameters.get(kind) else "full_attention"
            chosen = parameters[kind]
            rope_type = chosen.get("rope_type", "default")
            if rope_type in ("default", "linear"):
                n_rotated = (
                    int(shape.head_dim * chosen["partial_rotary_factor"]) if is_partial else shape.head_dim
                )
                steps = torch.arange(0, n_rotated, 2, dtype=torch.float32) / n_rotated
                inverse = 1.0 / chosen["rope_theta"] ** steps
                ropes.append((inverse / chosen.get("factor", 1.0) if rope_type == "linear" else inverse, 1.0))
            else:
                of_kind = {} if is_one else {"layer_type": kind}
                ropes.append(ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), **of_kind))
        rope, rope_scale = (ropes[0][0], ropes[1][0]), (float(ropes[0][1]), float(ropes[1][1]))
    return shape, rope, rope_scale, setting(config, "tie_word_embeddings", False)


def check_hidden_size(folder: Path, shape: DecoderShape, embedding: torch.Tensor) -> None:
    """Raise Damaged if the width of the embedding differs from config.json."""
    if embedding.shape[-1] != shape.hidden_size:
        raise Damaged(
            f"{folder / CONFIG}: hidden_size is {shape.hidden_size}, but the embedding has"
            f" {embedding.shape[-1]}."
        )


def norm_of(shape: DecoderShape, files: TensorFiles) -> torch.Tensor:
    """Return the weights of the last norm."""
    return _norm(shape, files.read("model.norm.weight"))


def how(shape: DecoderShape, files: TensorFiles) -> str:
    """Return how matrices are multiplied; "" for their own dtype."""
    first = f"model.layers.0.{ARCHITECTURES[shape.model_type].qkv[0]}.weight"
    if files.read(first, as_stored=True).dtype != torch.int8:
        return ""
    return int8.EXACT if _has_int8(files.device) else int8.WIDENED


def _has_int8(device: torch.device) -> bool:
    """Whether integers are multiplied. A GPU's int8 matmul takes only some numbers of rows."""
    return device.type == "cpu" and int8.is_exact()


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration that transformers reads; that of the language model, if it has several.

    Raises Unavailable for an architecture that is not one of KNOWN, before anything else is read, and
    Damaged for an unreadable configuration.
    """
    from transformers import AutoConfig

    raw = read_json(folder / CONFIG)
    if not isinstance(name := raw.get("model_type"), str):
        raise Damaged(f"{folder / CONFIG}: names no architecture (model_type).")
    outer, inner = name, raw.get("text_config")
    if isinstance(inner, dict) and isinstance(inner.get("model_type"), str):
        name = inner["model_type"]
    if encoder := next((kind for kind in (name, outer) if kind in ENCODERS), ""):
        raise Unavailable(f"'{encoder}' is an encoder, which writes no text: it cannot be asked.")
    if name not in KNOWN:
        raise Unavailable(
            f"The torch engine has no '{name}' architecture; it has: {', '.join(KNOWN)}.",
            code="architecture-unsupported",
        )
    if (how := raw.get("quantization_config")) not in (None, int8.HOW):
        method = how.get("quant_method") if isinstance(how, dict) else how
        raise Unavailable(
            f"The torch engine does not read weights quantized by '{method}'.",
            code="architecture-unsupported",
        )
    with _sense(folder / CONFIG):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        text_config = setting(config, "text_config", config)
    activation = setting(text_config, "hidden_activation", setting(text_config, "hidden_act", ""))
    if activation not in ("", "gelu_pytorch_tanh" if name.startswith("gemma") else "silu"):
        raise Unavailable(f"The torch engine has no '{name}' with the activation '{activation}'.")
    return text_config


def check_roundable(config: PreTrainedConfig) -> None:
    """Raise Refused for a model whose experts are in one tensor, most of which no recipe would round."""
    names = ARCHITECTURES[config.model_type].experts
    if names is not None and names.is_stacked:
        raise Refused(f"The experts of '{config.model_type}' are in one tensor, which is not rounded here.")


def setting(config: PreTrainedConfig, name: str, default: Setting) -> Setting:
    """Return a setting of transformers' configuration that some architectures lack, or leave empty."""
    value: Setting = getattr(config, name, None) or default
    return value


@contextmanager
def _sense(path: Path) -> Iterator[None]:
    """Turn any exception of reading a configuration into Damaged, in one line of text."""
    try:
        yield
    except (
        ArithmeticError, AttributeError, KeyError, OSError, StrictDataclassError, TypeError, ValueError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise Damaged(f"{path}: makes no sense ({type(error).__name__}: {reason}).") from None


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Return x -> x W' + b, with the weight packed once for this processor's kernels if torch can."""
    packed = _pack(weight)
    if packed is None:
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")


def _pack(weight: torch.Tensor) -> torch.Tensor | None:
    """Return the weight in oneDNN's blocked layout, which no call then reorders. None: not faster here."""
    if weight.device.type != "cpu" or not _is_packed_faster(weight.dtype):
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 64)  # type: ignore[no-any-return]
    except (RuntimeError, AttributeError):  # an older processor or torch: the plain matmul is equivalent
        return None


@cache
def _is_packed_faster(dtype: torch.dtype) -> bool:
    """Return True for bfloat16, and for float32 on x86 without AVX-512, where torch's own product is slow."""
    if dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.bfloat16 or torch.backends.cpu.get_cpu_capability() == "AVX2"


def _shape(config: PreTrainedConfig) -> DecoderShape:
    architecture = ARCHITECTURES[config.model_type]
    head_dim = setting(config, "head_dim", config.hidden_size // config.num_attention_heads)
    is_gemma = config.model_type.startswith("gemma3")
    window = setting(config, "sliding_window", 0)
    every = "sliding_attention" if window and architecture.has_one_window else "full_attention"
    kinds = setting(config, "layer_types", [every] * config.num_hidden_layers)
    scalar = config.query_pre_attn_scalar if is_gemma else head_dim
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    shape = DecoderShape(
        model_type=config.model_type,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=setting(config, "num_key_value_heads", config.num_attention_heads),
        head_dim=head_dim,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        attention_scale=float(scalar) ** -0.5,
        windows=windows,
        rotations=tuple(int(bool(size)) for size in windows),
        embedding_scale=float(config.hidden_size) ** 0.5 if is_gemma else 1.0,
        is_gemma=is_gemma,
    )
    has_own = architecture.settings or architecture.experts
    return with_own_settings(shape, config) if has_own else shape


def block(shape: DecoderShape, files: TensorFiles, layer: int) -> Block:
    """Return the weights of one layer, ready to multiply."""
    at, names = f"model.layers.{layer}.", ARCHITECTURES[shape.model_type]

    def norm(name: str) -> torch.Tensor | None:
        return _norm(shape, files.read(f"{at}{name}.weight")) if name else None

    experts = _experts(shape, files, at)
    gate_up, down = names.gate_up, names.down
    if experts is not None and names.experts is not None:
        gate_up, down = names.experts.shared_gate_up, names.experts.shared_down
    has_rotated_norm = shape.has_rotated_norm and shape.rotations[layer] != NOT_ROTATED
    return Block(
        norm_attention=norm(names.norms.attention),
        qkv=_fused(files, at, names.qkv),
        norm_q=_norm_of_heads(shape, files, f"{at}self_attn.q_norm.weight", shape.n_heads),
        norm_k=_norm_of_heads(shape, files, f"{at}self_attn.k_norm.weight", shape.n_kv_heads),
        out=_fused(files, at, names.out),
        norm_attention_out=norm(names.norms.attention_out),
        norm_mlp=norm(names.norms.mlp),
        gate_up=_fused(files, at, gate_up) if gate_up else None,
        down=_fused(files, at, down) if down else None,
        norm_mlp_out=norm(names.norms.mlp_out),
        experts=experts,
        norm_rotated=torch.ones(shape.head_dim, dtype=files.dtype, device=files.device)
        if has_rotated_norm
        else None,
    )


def _fused(files: TensorFiles, at: str, names: Sequence[str]) -> Linear:
    """Return one matmul by the matrices of these names."""
    has_bias = files.get(f"{at}{names[0]}.bias") is not None
    bias = torch.cat([files.read(f"{at}{name}.bias") for name in names]) if has_bias else None
    weight = torch.cat([files.read(f"{at}{name}.weight", as_stored=True) for name in names])
    if weight.dtype != torch.int8:
        return linear(weight.to(files.dtype), bias)
    scale = torch.cat([files.read(f"{at}{name}.weight{int8.SCALE}", as_stored=True) for name in names])
    if _has_int8(files.device):
        return int8.quantized_linear(weight, scale, bias)
    return linear(int8.dequantize(weight, scale, files.dtype), bias)


def _experts(shape: DecoderShape, files: TensorFiles, at: str) -> Experts | None:
    """Return the experts of a layer; None for a layer without a router."""
    names, routing = ARCHITECTURES[shape.model_type].experts, shape.routing
    if names is None or routing is None or not files.has(f"{at}{names.router}.weight"):
        return None
    router = files.read(f"{at}{names.router}.weight")
    if not routing.n_chosen <= len(router):
        raise Damaged(
            f"{files.folder / CONFIG}: {routing.n_chosen} experts of {len(router)} are chosen for a token."
        )
    if names.is_stacked:
        stacks = [files.read(f"{at}{name}").unbind() for name in (*names.gate_up, *names.down)]
        each = [Expert(*(linear(one.t().contiguous()) for one in pair)) for pair in zip(*stacks, strict=True)]
    else:
        each = [_expert(files, at, names, i) for i in range(len(router))]
    if len(each) != len(router):
        raise Damaged(f"{files.folder}: {len(router)} experts are routed to, {len(each)} there.")
    kind = "" if names.is_stacked else how(shape, files)
    return Experts(linear(router), each, routing, steady_tile(each[0], router, kind))


def _expert(files: TensorFiles, at: str, names: ExpertNames, i: int) -> Expert:
    gate_up, down = ([name.format(i) for name in some] for some in (names.gate_up, names.down))
    return Expert(_fused(files, at, gate_up), _fused(files, at, down))


def _norm_of_heads(shape: DecoderShape, files: TensorFiles, name: str, n_heads: int) -> torch.Tensor | None:
    """Return the weights of a norm of queries or keys: (head_dim,), or (heads, head_dim) for all at once."""
    if not files.has(name):
        return None
    weight = _norm(shape, files.read(name))
    if tuple(weight.shape) == (shape.head_dim,):
        return weight
    if tuple(weight.shape) != (n_heads * shape.head_dim,):
        raise Damaged(
            f"{files.folder / CONFIG}: {n_heads} heads of {shape.head_dim} do not fit {name},"
            f" {list(weight.shape)}."
        )
    return weight.view(n_heads, shape.head_dim)


def _norm(shape: DecoderShape, weight: torch.Tensor) -> torch.Tensor:
    return weight + 1 if shape.is_gemma else weight  # Gemma keeps its norms' weights around zero


class TensorFiles:
    """The tensors in all safetensors files of a folder, as `dtype`, on a device.

    Raises Damaged if there is no file.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device = ON_CPU) -> None:
        self.dtype, self.device, self.folder = dtype, device, folder
        self._where = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, framework="pt", device=str(device))
            for name in file.keys():  # noqa: SIM118
                # As a tensor of the language model is named in models without images.
                plain = name.removeprefix("language_model.").replace("model.language_model.", "model.", 1)
                self._where[plain] = file, name
        if not self._where:
            raise Damaged(f"{folder}: there is no safetensors file")

    def read(self, name: str, as_stored: bool = False) -> torch.Tensor:
        """Return a tensor, in the dtype of the file if `as_stored`. Raises Damaged if it is missing."""
        if name not in self._where:
            raise Damaged(f"{self.folder}: the tensor {name} is missing")
        file, stored = self._where[name]
        tensor: torch.Tensor = file.get_tensor(stored)
        return tensor if as_stored else tensor.to(self.dtype)

    def has(self, name: str) -> bool:
        """Return True if there is a tensor of this name."""
        return name in self._where

    def get(self, name: str) -> torch.Tensor | None:
        """Return a tensor; None if there is no such tensor."""
        return self.read(name) if name in self._where else None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; {} if the file is missing or holds something else. Raises Damaged."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not JSON ({error}).") from None
    return value if isinstance(value, dict) else {}
