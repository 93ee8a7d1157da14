"""Parameters and FLOPs of a decoder, exactly, by part.

FLOPs are those of matrix products, a multiply-add counted as two, the way back as twice the way forward; a
token sees half of its context on average, as attention is causal. What norms and activations take is left
out, as everywhere (PaLM 2204.02311, appendix B, which counts the whole square).

Promises: parameters are those of transformers' model, to the last one (a test holds both equal).
Leaves to others: the shape (sizes.py) and what FLOPs cost (forecast.py).
"""

from __future__ import annotations

from heredity.train.sizes import Shape


def parameters(shape: Shape, has_qk_norm: bool) -> dict[str, int]:
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


def of_layer(shape: Shape, has_qk_norm: bool) -> int:
    """Parameters of one layer."""
    return _attention(shape) + _feed_forward(shape) + 2 * shape.width + 2 * shape.head * has_qk_norm


def of_root(shape: Shape) -> int:
    """Parameters that are in no layer."""
    return shape.vocabulary * shape.width * (1 if shape.is_tied else 2) + shape.width


def hidden_matrices(shape: Shape) -> int:
    """Parameters that Muon steps: the matrices within layers."""
    return shape.layers * (_attention(shape) + _feed_forward(shape))


def flops(shape: Shape, length: float | None = None) -> dict[str, float]:
    """Of one token, forward and backward. `length`: of the document it stands in; None: the whole context."""
    seen = (shape.context if length is None else length) / 2
    return {
        "attention": 6.0 * shape.layers * _attention(shape),
        "attention scores": 12.0 * shape.layers * shape.heads * shape.head * seen,
        "feed-forward": 6.0 * shape.layers * _feed_forward(shape),
        "head": 6.0 * shape.vocabulary * shape.width,
    }


def share_again(shape: Shape) -> float:
    """How much more is multiplied where layers run forward a second time instead of keeping their numbers."""
    said = flops(shape)
    return (sum(said.values()) - said["head"]) / 3 / sum(said.values())


def _attention(shape: Shape) -> int:
    return shape.width * shape.head * 2 * (shape.heads + shape.kv_heads)


def _feed_forward(shape: Shape) -> int:
    return 3 * shape.width * shape.wide
