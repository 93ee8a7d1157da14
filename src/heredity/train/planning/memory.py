"""Bytes that a pre-training takes on one device, by part.

What a layer keeps for its way back is counted tensor by tensor as transformers' decoder keeps it: of a norm
its input in fp32 and what it scales (on a CPU, by train/norms.py, the latter alone); what each product reads;
queries, keys, values and the attention's result (a flash kernel keeps no square); four of the feed-forward
part. Where a layer is run again instead, it keeps its input alone.

Shards are those of FSDP2 in torch: masters, gradients and moments lie in equal shards; weights are gathered
for the root and for two layers at once (the one that is multiplied, the next that is fetched).

Promises: what a forward keeps is that of a real model to the byte (a test holds both equal).
Leaves to others: what an allocator and the device's own libraries take (forecast.py keeps a reserve).
"""

from __future__ import annotations

from heredity.train.planning import parts
from heredity.train.planning.work import Work
from heredity.train.sizes import Shape

WIDE = 4  # bytes of fp32
CHUNK = 1024  # rows of logits that are there at once: network.CHUNK, which needs torch
_COPIES = 2  # of a chunk's logits in fp32: themselves, and logarithms that become their gradient


def training(
    work: Work, n_tokens: int, shards: int = 1, runs_again: bool = False, n_products: int = 2
) -> dict[str, int]:
    """Bytes by part at the worst of a step's three peaks, while `n_tokens` are multiplied at once.

    runs_again: layers keep their input alone. n_products: of a step; from the second on, gradients of the
    first lie there already.
    """
    before = WIDE * _shard(n_parameters(work), shards) if n_products > 1 else 0
    peaks = (
        _turn(work, n_tokens, shards, runs_again, before),
        _back(work, n_tokens, shards, runs_again, before),
        _end(work, n_tokens, shards, runs_again),
    )
    return max(peaks, key=lambda parts: sum(parts.values()))


def _turn(work: Work, n_tokens: int, shards: int, runs_again: bool, before: int) -> dict[str, int]:
    """Forward is done: all that was kept is there, a chunk's logits, and the gradient of the head."""
    shape = work.shape
    return _lasting(work, shards, n_gathered=0) | {
        "gradients": work.bytes * shape.vocabulary * shape.width + before,
        "activations": n_tokens * kept(work, runs_again),
        "logits": logits(work, n_tokens),
    }


def _back(work: Work, n_tokens: int, shards: int, runs_again: bool, before: int) -> dict[str, int]:
    """The last layer is on its way back; it is there in full, even where it runs again."""
    shape, full = work.shape, kept_by_layer(work) if runs_again else 0
    return _lasting(work, shards, n_gathered=2) | {
        "gradients": work.bytes * shape.vocabulary * shape.width + before,
        "activations": n_tokens * (kept(work, runs_again) + full + _back_of_layer(work)),
        "logits": 0,
    }


def _end(work: Work, n_tokens: int, shards: int, runs_again: bool) -> dict[str, int]:
    """The way back is done but for the first layer and the embedding: gradients are there, and the root's."""
    shape = work.shape
    root, size = parts.of_root(shape), work.bytes
    whole = root + parts.of_layer(shape, work.has_qk_norm)  # its gradients are summed over devices just now
    flying = (size + WIDE) * whole if shards > 1 else size * (root + shape.vocabulary * shape.width)
    layer = kept_by_layer(work) + _back_of_layer(work) + (work.bytes * shape.width if runs_again else 0)
    return _lasting(work, shards, n_gathered=2) | {
        "gradients": WIDE * _shard(n_parameters(work), shards) + flying,
        "activations": n_tokens * layer,
        "logits": 0,
    }


def _lasting(work: Work, shards: int, n_gathered: int) -> dict[str, int]:
    """What is there all the time; of sharded weights the root and so many layers are gathered."""
    n = n_parameters(work)
    layers = min(n_gathered, work.shape.layers) * parts.of_layer(work.shape, work.has_qk_norm)
    return {
        "weights": work.bytes * (n if shards == 1 else parts.of_root(work.shape) + layers),
        "masters": WIDE * _shard(n, shards),
        "optimizer": _shard(optimizer(work), shards),
    }


def n_parameters(work: Work) -> int:
    """All of them."""
    return sum(parts.parameters(work.shape, work.has_qk_norm).values())


def optimizer(work: Work) -> int:
    """Moments in fp32: two of AdamW; Muon has one, of the matrices within layers."""
    n = n_parameters(work)
    return WIDE * (2 * n - (parts.hidden_matrices(work.shape) if work.optimizer == "muon" else 0))


def logits(work: Work, n_tokens: int) -> int:
    """Bytes of the logits that are there at once, of so many tokens."""
    return (WIDE * _COPIES + work.bytes) * min(CHUNK, n_tokens) * work.shape.vocabulary


def kept(work: Work, runs_again: bool = False) -> int:
    """Bytes a token that a whole forward keeps for the way back."""
    layer = work.bytes * work.shape.width if runs_again else kept_by_layer(work)
    return work.shape.layers * layer + kept_by_root(work)


def _back_of_layer(work: Work) -> int:
    """Bytes a token that a layer's way back takes beside what was kept."""
    return work.bytes * (3 * work.shape.wide + 2 * work.shape.width)


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


def _norm(work: Work, columns: int, n: int) -> int:
    if work.is_on_cpu:
        return work.bytes * (columns + n)
    return (WIDE + work.bytes) * columns + WIDE * n


def _shard(n: int, shards: int) -> int:
    return -(-n // shards)


def gathered(shape: Shape, has_qk_norm: bool) -> tuple[int, int]:
    """Numbers that are gathered once a product (the root), and twice (the layers)."""
    return parts.of_root(shape), shape.layers * parts.of_layer(shape, has_qk_norm)
