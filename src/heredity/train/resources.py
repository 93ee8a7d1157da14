"""The memory of a training, estimated before it begins, and its throughput against the machine's limit.

Memory is that of weights, masters, gradients, optimizer state, activations and logits. Python and its
libraries are left out.

Activations are counted tensor by tensor, as transformers' decoder keeps them for the backward pass. A norm
keeps its input in fp32 and what it scales; on a CPU only the latter (kernels.py). A matmul keeps
what it reads. Attention keeps queries, keys, values and its result, and no square of scores. The feed-forward
part keeps four tensors.

Utilization is the share of the machine's matmul speed that a training reaches. The limit is measured at
the model's own shapes, not taken from a data sheet. Source: "model FLOPs utilization" in PaLM (2204.02311,
appendix B).

Promises: importing this loads no torch. The activation bytes are those of transformers' model (a test).
Leaves to others: how much memory there is, the refusal, and timing a product (core/host.py); a model's FLOPs
(models/shapes.py); plans for many devices (forecast.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heredity.core import host
from heredity.core.progress import Progress, Watch
from heredity.train.models.shapes import TransformerShape

if TYPE_CHECKING:
    import numpy as np
    import torch

    from heredity.train.data.chat import TokenizedExample
    from heredity.train.loop import OptimizerName
    from heredity.train.models.causal_lm import CausalLM, Trainable

FP32_BYTES = 4
PRETRAIN_MICROBATCH_TOKENS = 4096  # in one forward pass over text; one context if that is longer
LOGIT_ROWS_HELD = 1024  # at once: GRADIENT_ROWS of models/causal_lm.py, which needs torch
_LOGIT_COPIES = 2  # in fp32: the logits, and log-probabilities that become their gradient


# --- memory ---


@dataclass(frozen=True)
class DecoderActivations:
    """Bytes that a decoder's forward pass keeps for the backward pass. number_bytes: 2 for bfloat16."""

    shape: TransformerShape
    number_bytes: int
    is_on_cpu: bool
    has_qk_norm: bool

    @property
    def per_token(self) -> int:
        """Of a whole forward pass, without logits."""
        return self.root + self.shape.layers * self.per_layer

    @property
    def per_layer(self) -> int:
        """Of one layer and token."""
        shape, size = self.shape, self.number_bytes
        queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
        norms = 2 * self._norm(shape.width, 1)
        if self.has_qk_norm:
            norms += self._norm(queries, shape.heads) + self._norm(keys, shape.kv_heads)
        matmul_inputs = size * (2 * shape.width + queries)
        attention = size * (2 * queries + 2 * keys) + FP32_BYTES * shape.heads
        return norms + matmul_inputs + attention + size * 4 * shape.wide

    @property
    def root(self) -> int:
        """Per token, outside the layers: last norm, rotary positions, token ids, the gradient at the head."""
        shape, size = self.shape, self.number_bytes
        return self._norm(shape.width, 1) + 2 * size * shape.head + 16 + size * shape.width

    def logits(self, n_rows: int) -> int:
        """Of the logits that are held at once, of `n_rows` in total."""
        row = (FP32_BYTES * _LOGIT_COPIES + self.number_bytes) * self.shape.vocabulary
        return row * min(LOGIT_ROWS_HELD, n_rows)

    def _norm(self, columns: int, n: int) -> int:
        if self.is_on_cpu:
            return self.number_bytes * (columns + n)
        return (FP32_BYTES + self.number_bytes) * columns + FP32_BYTES * n


def estimate_memory(
    network: CausalLM,
    trainable: Trainable,
    optimizer: OptimizerName,
    examples: Sequence[TokenizedExample],
    batch_size: int,
) -> dict[str, int]:
    """Bytes of a training step by part; "weights" are those that are loaded already.

    The gradient of a trained head exists twice when the backward pass begins: as made, and scaled.
    """
    n_trainable = trainable.n_trainable(network)
    n_moments = 1 if optimizer == "muon" else 2  # at least: Muon leaves embedding and vectors to AdamW
    n_tokens, activations = largest_microbatch(examples, batch_size), _activations(network)
    head = network.head.nbytes if trainable.FORMAT == "safetensors" else 0
    at_head = max(activations.logits(n_tokens) + head, 2 * head)
    return {
        "weights": sum(each.nbytes for each in network.model.parameters()),
        "masters": FP32_BYTES * n_trainable,
        "gradients": FP32_BYTES * n_trainable,
        "optimizer": n_moments * FP32_BYTES * n_trainable,
        f"a step of {n_tokens:,} tokens": n_tokens * activations.per_token + at_head,
    }


def largest_microbatch(examples: Sequence[TokenizedExample], batch_size: int) -> int:
    """The most tokens in one forward pass: a full microbatch, or an example that is longer."""
    from heredity.train.loop import MICROBATCH_TOKENS

    longest = sorted((each.n_tokens for each in examples), reverse=True)
    return max(longest[0], min(MICROBATCH_TOKENS, sum(longest[:batch_size])))


def shape_of_model(network: CausalLM) -> TransformerShape:
    """The shape of a loaded model. Of experts those count that a token is sent to."""
    from heredity.formats.linear_layers import number_of, settings_of, text_config

    config = text_config(network.model.config)
    settings, width = settings_of(config), config.hidden_size

    def number(name: str) -> int:
        return number_of(settings, name) or 0

    heads = number("num_attention_heads") or 1
    wide = number("moe_intermediate_size") or number("intermediate_size") or 4 * width
    return TransformerShape(
        config.num_hidden_layers, width, heads, number("num_key_value_heads") or heads,
        number("head_dim") or width // heads, wide * (number("num_experts_per_tok") or 1),
        number("max_position_embeddings"), len(network.head),
    )  # fmt: skip


def _activations(network: CausalLM) -> DecoderActivations:
    from heredity.formats.linear_layers import text_config

    head, kind = network.head, text_config(network.model.config).model_type
    return DecoderActivations(
        shape_of_model(network), head.element_size(), head.device.type == "cpu", has_qk_norm=kind == "qwen3"
    )


# --- throughput ---


class ThroughputMeter:
    """Passes the progress of a loop to a display, and keeps the last event."""

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch, self.last = watch, Progress("train", "", 0, 0, unit="tokens")

    def __call__(self, at: Progress) -> None:
        if at.per_second:  # not a phase, nor the state before the first step
            self.last = at
        if self._watch is not None:
            self._watch(at)

    def notes(self, of_token: float, limit: float) -> dict[str, str]:
        """Tokens per second, and their share of a limit, as a note for the model's record.

        of_token: FLOPs per token. limit: FLOP/s. {} if this process ran no step.
        """
        if not self.last.per_second:
            return {}
        used = self.last.per_second * of_token
        return {
            "speed": f"{self.last.per_second:,.0f} tokens/s, {used / limit:.0%} of {limit / 1e9:,.0f} "
            "GFLOP/s that this machine's products reach at these shapes"
        }


def mean_chunk_length(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], context: int) -> float:
    """The mean chunk length over tokens, for documents of these lengths that are cut at the context."""
    whole, rest = lengths // context, lengths % context
    return float((whole * context**2 + rest**2).sum() / lengths.sum())


def matmul_limit(
    shape: TransformerShape,
    dtype: torch.dtype,
    of_head: float = 1.0,
    device: torch.device | None = None,
) -> float:
    """The measured FLOP/s of the model's matmuls, forward and backward. of_head: its share of rows.

    device: None: the processor.
    """
    columns = shape.head * (shape.heads + 2 * shape.kv_heads)
    layer = [(shape.width, columns), (shape.head * shape.heads, shape.width)]
    layer += [(shape.width, (shape.feeds - 1) * shape.wide), (shape.wide, shape.width)]
    n_rows = PRETRAIN_MICROBATCH_TOKENS
    products = [(*size, n_rows) for size in layer * shape.layers]
    products.append((shape.width, shape.vocabulary, max(1, round(of_head * n_rows))))
    return host.matmul_flops(products, dtype, device)


def memory_bandwidth(width: int, dtype: torch.dtype, n_rows: int = PRETRAIN_MICROBATCH_TOKENS) -> float:
    """Bytes/s of the element-wise passes between a step's products."""
    return host.memory_bandwidth(n_rows, width, dtype)
