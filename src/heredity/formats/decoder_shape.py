"""The shape of a decoder, and the settings of config.json that only some architectures have.

Promises: a setting counts only for an architecture for which transformers reads it.
Leaves to others: the settings that all have, and the file (weights.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from heredity.formats.architectures import ARCHITECTURES
from heredity.formats.experts import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NOT_ROTATED = 2  # after the rotations of global and of windowed layers
Rope = tuple[torch.Tensor, torch.Tensor]  # inverse frequencies (rotated channels / 2,): global, windowed
Setting = TypeVar("Setting")


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
    chunk = int(_own(config, "attention_chunk_size", 0))
    windows = shape.windows
    if chunk:
        windows = tuple(chunk if kind == "chunked_attention" else 0 for kind in config.layer_types)
    is_rotated = _own(config, "no_rope_layers", [1] * len(windows))[: len(windows)]  # 0: it is not
    kinds = zip(windows, is_rotated, strict=True)
    return replace(
        shape,
        context_length=_context_length(config, shape.context_length),
        attention_scale=float(_own(config, "attention_multiplier", shape.attention_scale)),
        windows=windows,
        rotations=tuple(int(bool(size)) if turns else NOT_ROTATED for size, turns in kinds),
        embedding_scale=float(_own(config, "embedding_multiplier", shape.embedding_scale)),
        residual_scale=float(_own(config, "residual_multiplier", 1.0)),
        logits_scale=float(_own(config, "logits_scaling", 1.0)),
        routing=_routing(config),
        has_chunks=chunk > 0,
        has_rotated_norm=_own(config, "use_qk_norm", False),
        temperature=_temperature(config),
    )


def _own(config: PreTrainedConfig, name: str, default: Setting) -> Setting:
    """Return a setting of this architecture; the default for others, whatever is in the file."""
    if name not in ARCHITECTURES[config.model_type].settings:
        return default
    found: Setting = getattr(config, name, None) or default
    return found


def _temperature(config: PreTrainedConfig) -> tuple[float, float] | None:
    if not _own(config, "attn_temperature_tuning", False):
        return None
    return float(config.floor_scale), float(config.attn_scale)


def _routing(config: PreTrainedConfig) -> Routing | None:
    names = ARCHITECTURES[config.model_type].experts
    if names is None:
        return None
    is_normed = names.is_normed or _own(config, "norm_topk_prob", False)
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
