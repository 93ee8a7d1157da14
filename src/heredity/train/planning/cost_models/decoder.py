"""Parameters, FLOPs and activation bytes of a decoder, by part.

FLOPs are those of matmuls. A multiply-add counts as two, and the backward pass as two forward passes. A token
attends to half of its context on average. Norms and activations are left out, as in PaLM (2204.02311,
appendix B), which counts the whole square of attention scores.

Leaves to others: the shape (models/shapes.py), and activation bytes (train/resources.py).
"""

from __future__ import annotations

from heredity.train.models.shapes import TransformerShape
from heredity.train.planning.cost_models import CostModel, TowerCosts
from heredity.train.planning.workload import Workload
from heredity.train.resources import DecoderActivations


def cost_model(work: Workload) -> CostModel:
    """The costs of a decoder."""
    shape, kept = work.shape, activations(work)
    table = shape.vocabulary * shape.width
    tower = TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * layer_parameters(shape, work.has_qk_norm),
        each=layer_parameters(shape, work.has_qk_norm),
        kept=shape.layers * kept.per_layer,
        begin=kept.root,
        end=0,
        most=kept.per_layer,
        entry=work.bytes * shape.width,
        back=work.bytes * (3 * shape.wide + 2 * shape.width),
    )
    return CostModel(
        parameters=parameters(shape, work.has_qk_norm),
        matrices=shape.layers * (_attention(shape) + _feed_forward(shape)),
        flops=flops(shape),
        towers=(tower,),
        head=table,
        loose=root_parameters(shape) + table,
        logits=kept.logits,
    )


def parameters(shape: TransformerShape, has_qk_norm: bool) -> dict[str, int]:
    """Parameters by part. A head that is tied to the embedding has 0."""
    table = shape.vocabulary * shape.width
    norms = shape.layers * (2 * shape.width + 2 * shape.head * has_qk_norm) + shape.width
    return {
        "embedding": table,
        "attention": shape.layers * _attention(shape),
        "feed-forward": shape.layers * _feed_forward(shape),
        "norms": norms,
        "head": 0 if shape.is_tied else table,
    }


def layer_parameters(shape: TransformerShape, has_qk_norm: bool) -> int:
    """Parameters of one layer."""
    return _attention(shape) + _feed_forward(shape) + 2 * shape.width + 2 * shape.head * has_qk_norm


def root_parameters(shape: TransformerShape) -> int:
    """Parameters outside the layers."""
    return shape.vocabulary * shape.width * (1 if shape.is_tied else 2) + shape.width


def flops(shape: TransformerShape, length: float | None = None) -> dict[str, float]:
    """FLOPs of one token, forward and backward. length: of its document; None: the whole context."""
    seen = (shape.context if length is None else length) / 2
    return {
        "attention": 6.0 * shape.layers * _attention(shape),
        "attention scores": 12.0 * shape.layers * shape.heads * shape.head * seen,
        "feed-forward": 6.0 * shape.layers * _feed_forward(shape),
        "head": 6.0 * shape.vocabulary * shape.width,
    }


def _attention(shape: TransformerShape) -> int:
    return shape.width * shape.head * 2 * (shape.heads + shape.kv_heads)


def _feed_forward(shape: TransformerShape) -> int:
    return 3 * shape.width * shape.wide


def activations(work: Workload) -> DecoderActivations:
    """The activations of a forward pass."""
    return DecoderActivations(work.shape, work.bytes, work.is_on_cpu, work.has_qk_norm)


def logits_memory(work: Workload, n: int) -> int:
    """Bytes of the logits that are held at once, of `n` rows."""
    return activations(work).logits(n)
