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

from heredity.train.models.shapes import TransformerShape
from heredity.train.planning.cost_models import WIDE, Anatomy, Tower
from heredity.train.planning.flops import Work

CHUNK = 1024  # rows of logits that are there at once: network.GROUP, which needs torch
_COPIES = 2  # of a chunk's logits in fp32: themselves, and logarithms that become their gradient


def anatomy(work: Work) -> Anatomy:
    """Of a decoder."""
    shape, layer = work.shape, kept_by_layer(work)
    table = shape.vocabulary * shape.width
    tower = Tower(
        layers=shape.layers,
        parameters=shape.layers * of_layer(shape, work.has_qk_norm),
        each=of_layer(shape, work.has_qk_norm),
        kept=shape.layers * layer,
        begin=kept_by_root(work),
        end=0,
        most=layer,
        entry=work.bytes * shape.width,
        back=work.bytes * (3 * shape.wide + 2 * shape.width),
    )
    return Anatomy(
        parameters=parameters(shape, work.has_qk_norm),
        matrices=shape.layers * (_attention(shape) + _feed_forward(shape)),
        flops=flops(shape),
        towers=(tower,),
        head=table,
        loose=of_root(shape) + table,
        logits=lambda n: logits(work, n),
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


def of_layer(shape: TransformerShape, has_qk_norm: bool) -> int:
    """Parameters of one layer."""
    return _attention(shape) + _feed_forward(shape) + 2 * shape.width + 2 * shape.head * has_qk_norm


def of_root(shape: TransformerShape) -> int:
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


def kept_by_layer(work: Work) -> int:
    """Bytes a token."""
    shape, size = work.shape, work.bytes
    asked, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    norms = 2 * _norm(work, shape.width, 1)
    if work.has_qk_norm:
        norms += _norm(work, asked, shape.heads) + _norm(work, keys, shape.kv_heads)
    read = size * (2 * shape.width + asked)
    attention = size * (2 * asked + 2 * keys) + WIDE * shape.heads
    return norms + read + attention + size * 4 * shape.wide


def kept_by_root(work: Work) -> int:
    """Bytes a token: the last norm, rotary positions, numbers of tokens, the gradient at the head."""
    shape, size = work.shape, work.bytes
    return _norm(work, shape.width, 1) + 2 * size * shape.head + 16 + size * shape.width


def logits(work: Work, n: int) -> int:
    """Bytes of the logits that are there at once, of so many rows."""
    return (WIDE * _COPIES + work.bytes) * min(CHUNK, n) * work.shape.vocabulary


def _norm(work: Work, columns: int, n: int) -> int:
    if work.is_on_cpu:
        return work.bytes * (columns + n)
    return (WIDE + work.bytes) * columns + WIDE * n
