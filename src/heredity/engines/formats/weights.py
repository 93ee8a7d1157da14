"""A decoder's shape and weights, read from a folder of safetensors: fused, in one dtype, ready to multiply.

Promises: only safetensors and JSON are opened; an architecture that is not known here is refused by name.
Leaves to others: the arithmetic (torch/decoder.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from heredity.core.errors import Damaged, Unavailable
from heredity.engines.formats import int8

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG = "config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Linear = Callable[[torch.Tensor], torch.Tensor]
Setting = TypeVar("Setting")
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gemma3")
ENCODERS = ("modernbert", "bert", "roberta", "clip", "siglip")  # of text, or of text and images


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
    embedding_scale: float  # factor on the embeddings
    is_gemma: bool


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: norms are (hidden_size,) vectors; `qkv` and `gate_up` are fused matmuls."""

    norm_attention: torch.Tensor
    qkv: Linear
    norm_q: torch.Tensor | None
    norm_k: torch.Tensor | None
    out: Linear
    norm_attention_out: torch.Tensor | None
    norm_mlp: torch.Tensor
    gate_up: Linear
    down: Linear
    norm_mlp_out: torch.Tensor | None


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
    rope: tuple[torch.Tensor, torch.Tensor]  # inverse frequencies (head_dim / 2,): global, windowed layers
    rope_scale: float
    how: str = ""  # how matrices are multiplied, if not in their own dtype
    base: Weights | None = None  # the base of an adapter: held, so that it stays resident


ON_CPU = torch.device("cpu")
_RESIDENT: WeakValueDictionary[tuple[Path, torch.dtype, torch.device], Weights] = WeakValueDictionary()


def resident(folder: Path, dtype: torch.dtype, device: torch.device = ON_CPU) -> Weights:
    """Read weights once: while they are in use, every caller gets the same object."""
    weights = _RESIDENT.get((folder, dtype, device))
    if weights is None:
        weights = _RESIDENT[folder, dtype, device] = read_weights(folder, dtype, device)
    return weights


def read_weights(folder: Path, dtype: torch.dtype, device: torch.device = ON_CPU) -> Weights:
    """The weights in `folder` (config.json and *.safetensors), as `dtype`, read straight onto the device.

    Raises Unavailable for an architecture that is not one of KNOWN, Damaged for a config.json that makes no
    sense and for missing tensors.
    """
    shape, rope, rope_scale, is_tied = read_shape(folder)
    files = TensorFiles(folder, dtype, device)
    embedding = files.read(EMBEDDING)
    check_hidden_size(folder, shape, embedding)
    blocks = tuple(block(shape, files, i) for i in range(shape.n_layers))
    head = linear(embedding if is_tied else files.read(HEAD))
    rope = rope[0].to(device), rope[1].to(device)
    return Weights(shape, embedding, blocks, norm_of(shape, files), head, rope, rope_scale, how(files))


def read_shape(folder: Path) -> tuple[DecoderShape, tuple[torch.Tensor, torch.Tensor], float, bool]:
    """Read config.json: the shape, the rotary settings, and whether the head is the embedding."""
    config = read_config(folder)
    with _sense(folder / CONFIG):
        shape = _shape(config)
        rope, rope_scale = _rope(config, shape)
    return shape, rope, rope_scale, setting(config, "tie_word_embeddings", False)


def check_hidden_size(folder: Path, shape: DecoderShape, embedding: torch.Tensor) -> None:
    """Raise Damaged if the width of the embedding differs from config.json."""
    if embedding.shape[-1] != shape.hidden_size:
        raise Damaged(
            f"{folder / CONFIG}: hidden_size is {shape.hidden_size}, but the embedding has"
            f" {embedding.shape[-1]}.",
            code="config-contradicts-weights",
        )


def norm_of(shape: DecoderShape, files: TensorFiles) -> torch.Tensor:
    """Return the weights of the last norm."""
    return _norm(shape, files.read("model.norm.weight"))


def how(files: TensorFiles) -> str:
    """Return how matrices are multiplied; "" for their own dtype."""
    if files.read("model.layers.0.self_attn.q_proj.weight", as_stored=True).dtype != torch.int8:
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
        raise Damaged(f"{folder / CONFIG}: names no architecture (model_type).", code="architecture-missing")
    outer, inner = name, raw.get("text_config")
    if isinstance(inner, dict) and isinstance(inner.get("model_type"), str):
        name = inner["model_type"]
    if encoder := next((kind for kind in (name, outer) if kind in ENCODERS), ""):
        raise Unavailable(
            f"'{encoder}' is an encoder, which writes no text: it cannot be asked.",
            code="encoder-writes-no-text",
        )
    if name not in KNOWN:
        raise Unavailable(
            f"The torch engine has no '{name}' architecture; it has: {', '.join(KNOWN)}.",
            code="architecture-unsupported",
        )
    if (how := raw.get("quantization_config")) not in (None, int8.HOW):
        method = how.get("quant_method") if isinstance(how, dict) else how
        raise Unavailable(
            f"The torch engine does not read weights quantized by '{method}'.",
            code="quantization-unsupported",
        )
    with _sense(folder / CONFIG):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        found = setting(config, "text_config", config)
    activation = setting(found, "hidden_activation", setting(found, "hidden_act", ""))
    if activation not in ("", "gelu_pytorch_tanh" if name.startswith("gemma") else "silu"):
        raise Unavailable(f"The torch engine has no '{name}' with the activation '{activation}'.")
    return found


def setting(config: PreTrainedConfig, name: str, default: Setting) -> Setting:
    """Return a setting of transformers' configuration that some architectures lack, or leave empty."""
    found: Setting = getattr(config, name, None) or default
    return found


@contextmanager
def _sense(path: Path) -> Iterator[None]:
    """Turn any exception of reading a configuration into Damaged, in one line of text."""
    try:
        yield
    except (
        ArithmeticError, AttributeError, KeyError, OSError, StrictDataclassError, TypeError, ValueError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise Damaged(
            f"{path}: makes no sense ({type(error).__name__}: {reason}).", code="config-invalid"
        ) from None


def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Return x -> x W' + b, with the weight packed once for this processor's kernels if torch can."""
    packed = _pack(weight)
    if packed is None:
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")


def _pack(weight: torch.Tensor) -> torch.Tensor | None:
    """Return the weight in oneDNN's blocked layout: the same results without reordering at every call."""
    is_bfloat16_on_cpu = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if not is_bfloat16_on_cpu or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 64)  # type: ignore[no-any-return]
    except (RuntimeError, AttributeError):  # an older processor or torch: the plain matmul is equivalent
        return None


def _shape(config: PreTrainedConfig) -> DecoderShape:
    head_dim = setting(config, "head_dim", config.hidden_size // config.num_attention_heads)
    is_gemma = config.model_type.startswith("gemma3")
    window = setting(config, "sliding_window", 0)
    every = "sliding_attention" if window and config.model_type == "mistral" else "full_attention"
    kinds = setting(config, "layer_types", [every] * config.num_hidden_layers)
    scalar = config.query_pre_attn_scalar if is_gemma else head_dim
    return DecoderShape(
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
        windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
        embedding_scale=float(config.hidden_size) ** 0.5 if is_gemma else 1.0,
        is_gemma=is_gemma,
    )


def block(shape: DecoderShape, files: TensorFiles, layer: int) -> Block:
    """Return the weights of one layer, ready to multiply."""
    at, dtype = f"model.layers.{layer}.", files.dtype

    def fused(names: tuple[str, ...]) -> Linear:
        has_bias = files.get(f"{at}{names[0]}.bias") is not None
        bias = torch.cat([files.read(f"{at}{name}.bias") for name in names]) if has_bias else None
        weight = torch.cat([files.read(f"{at}{name}.weight", as_stored=True) for name in names])
        if weight.dtype != torch.int8:
            return linear(weight.to(dtype), bias)
        scale = torch.cat([files.read(f"{at}{name}.weight{int8.SCALE}", as_stored=True) for name in names])
        if _has_int8(files.device):
            return int8.quantized_linear(weight, scale, bias)
        return linear(int8.dequantize(weight, scale, dtype), bias)

    def norm(name: str) -> torch.Tensor | None:
        found = files.get(f"{at}{name}.weight")
        return None if found is None else _norm(shape, found)

    after, before = ("post_attention_layernorm", "pre_feedforward_layernorm")
    return Block(
        norm_attention=_norm(shape, files.read(f"{at}input_layernorm.weight")),
        qkv=fused(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        norm_q=norm("self_attn.q_norm"),
        norm_k=norm("self_attn.k_norm"),
        out=fused(("self_attn.o_proj",)),
        norm_attention_out=norm(after) if shape.is_gemma else None,
        norm_mlp=_norm(shape, files.read(f"{at}{before if shape.is_gemma else after}.weight")),
        gate_up=fused(("mlp.gate_proj", "mlp.up_proj")),
        down=fused(("mlp.down_proj",)),
        norm_mlp_out=norm("post_feedforward_layernorm") if shape.is_gemma else None,
    )


def _norm(shape: DecoderShape, weight: torch.Tensor) -> torch.Tensor:
    return weight + 1 if shape.is_gemma else weight  # Gemma keeps its norms' weights around zero


class TensorFiles:
    """The tensors in all safetensors files of a folder, as `dtype`, on a device.

    Raises Damaged if there is no file.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device = ON_CPU) -> None:
        self.dtype, self.device, self._folder = dtype, device, folder
        self._where = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, framework="pt", device=str(device))
            self._where.update(dict.fromkeys(file.keys(), file))
        if not self._where:
            raise Damaged(f"{folder}: there is no safetensors file", code="weights-missing")

    def read(self, name: str, as_stored: bool = False) -> torch.Tensor:
        """Return a tensor, in the dtype of the file if `as_stored`. Raises Damaged if it is missing."""
        if name not in self._where:
            raise Damaged(f"{self._folder}: the tensor {name} is missing")
        found: torch.Tensor = self._where[name].get_tensor(name)
        return found if as_stored else found.to(self.dtype)

    def get(self, name: str) -> torch.Tensor | None:
        """Return a tensor; None if there is no such tensor."""
        return self.read(name) if name in self._where else None


def _rope(config: PreTrainedConfig, shape: DecoderShape) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    """Return inverse frequencies for global and windowed layers, and the factor on cos and sin."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    if "rope_theta" in parameters or "rope_type" in parameters:
        parameters = {"full_attention": parameters, "sliding_attention": parameters}
    found = []
    for kind in ("full_attention", "sliding_attention"):
        chosen = parameters.get(kind) or parameters["full_attention"]
        rope_type = chosen.get("rope_type", "default")
        if rope_type in ("default", "linear"):
            steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
            inverse = 1.0 / chosen["rope_theta"] ** steps
            found.append((inverse / chosen.get("factor", 1.0) if rope_type == "linear" else inverse, 1.0))
        else:
            found.append(ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu")))
    return (found[0][0], found[1][0]), float(found[0][1])


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; {} if the file is missing or holds something else. Raises Damaged."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Damaged(f"{path}: not JSON ({error}).", code="config-not-json") from None
    return value if isinstance(value, dict) else {}
