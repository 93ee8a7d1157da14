"""A decoder's parameters, FLOPs and kept bytes, by part.

FLOPs are those of matrix products, a multiply-add counted as two, the way back as twice the way forward; a
token sees half of its context on average, as attention is causal. What norms and activations take is left
out, as everywhere (PaLM 2204.02311, appendix B, which counts the whole square).

What a layer keeps for its way back is counted tensor by tensor as transformers' decoder keeps it: of a norm
its input in fp32 and what it scales (on a CPU, by train/norms.py, the latter alone); what each product reads;
queries, keys, values and the attention's result (a flash kernel keeps no square); four of the feed-forward
part.

Leaves to others: the shape (sizes.py).
"""

from __future__ import annotations

from heredity.train.memory import DecoderActivations
from heredity.train.models.shapes import TransformerShape
from heredity.train.planning.cost_models import CostModel, TowerCosts
from heredity.train.planning.workload import Workload


def cost_model(work: Workload) -> CostModel:
    """Of a decoder."""
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
    """How many there are: embedding, attention, feed-forward, norms, and a head that is not the embedding."""
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
    """Parameters that are in no layer."""
    return shape.vocabulary * shape.width * (1 if shape.is_tied else 2) + shape.width


def flops(shape: TransformerShape, length: float | None = None) -> dict[str, float]:
    """Of one token, forward and backward. `length`: of the document it stands in; None: the whole context."""
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
    """What a forward pass of this work keeps."""
    return DecoderActivations(work.shape, work.bytes, work.is_on_cpu, work.has_qk_norm)


def logits_memory(work: Workload, n: int) -> int:
    """Bytes of the logits that are held at once, of `n` rows."""
    return activations(work).logits(n)
