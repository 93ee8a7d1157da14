"""Keys and values of the tokens that rows begin with, computed once: of all rows of a step, or of some.

Rows of several adapters begin with the same text, and each adapter has its own keys and values of it. A step
attends to each by itself, at a proven width. So a row has the bits of a step of its adapter.

A token on which an adapter acts is marked: it is given as ~token, below zero, which also holds the number of
the adapter. A number is never given again while a process runs. So the cache of prompts, which compares
tokens, tells adapters apart: from their base, from each other, and from earlier ones of the same name.

Leaves to others: computing them (decoder.py), and which rows share a step (session.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

BLOCK = 64  # cache lengths are rounded up to this
FEWEST_ROWS = 4  # of a matmul over a prefix: fewer take another kernel, which sums otherwise
NUMBERS = 1 << 32  # above every token: the number of an adapter is counted in these


@dataclass(slots=True)
class SharedPrefix:
    """Keys and values of the tokens that rows begin with: (kv heads, n_positions, head_dim) per layer.

    text: the tokens without marks of adapters.
    """

    tokens: tuple[int, ...]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    text: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.text = plain(self.tokens)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def n_positions(self) -> int:
        """Positions in memory, whole blocks; those from `length` on are finite padding, and masked."""
        return round_up(self.length, BLOCK)

    def at(self, slot: int) -> SharedPrefix:  # noqa: ARG002
        """Return the prefix of the row in a slot."""
        return self

    def scores(self, queries: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the scores (kv heads, rows, group, n_positions) of queries; the padding is masked.

        queries: (kv heads, rows, group, head_dim).
        """
        n_heads, n_rows, group, head_dim = queries.shape
        flat = queries.reshape(n_heads, n_rows * group, head_dim)
        scores = torch.bmm(flat, self.keys[layer].transpose(1, 2))
        scores[..., self.length :] = -torch.inf
        return scores.view(n_heads, n_rows, group, self.n_positions)

    def weighted(self, p: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the sums of the values (kv heads, rows, group, head_dim).

        p: (kv heads, rows, group, n_positions and more), contiguous; those after n_positions are not used.
        """
        n_heads, n_rows, group, _ = p.shape
        of_shared = p.view(n_heads, n_rows * group, -1)[:, :, : self.n_positions]
        return torch.bmm(of_shared, self.values[layer]).view(n_heads, n_rows, group, -1)

    def joined(self, side: list[torch.Tensor], layer: int, own: torch.Tensor) -> torch.Tensor:
        """Return a row's own keys or values after those of the prefix, with zeros up to a `key_length`."""
        n = self.length + own.shape[1]
        shared = [side[layer][:, : self.length]] if self.length else []
        rest = own.new_zeros(own.shape[0], key_length(n) - n, own.shape[2])
        return torch.cat([*shared, own, rest], dim=1)


class VariedPrefix(SharedPrefix):
    """The prefixes of rows that begin with one text and differ in their adapters.

    by_slot: the prefix of each slot in use. widths: the proven numbers of rows of a step, ascending.
    device: of the decoder. The rows are put there once, and not in each layer.
    """

    def __init__(self, by_slot: dict[int, SharedPrefix], widths: Sequence[int], device: torch.device) -> None:
        super().__init__(next(iter(by_slot.values())).text, [], [])
        self._by_slot = by_slot
        n_rows = [max(width, FEWEST_ROWS) for width in widths]
        found: dict[int, tuple[SharedPrefix, list[int]]] = {}
        for slot, prefix in by_slot.items():
            found.setdefault(id(prefix), (prefix, []))[1].append(slot)
        self._parts = [
            (prefix, torch.tensor(rows, device=device), padded_rows(rows, n_rows).to(device))
            for prefix, rows in found.values()
        ]

    def at(self, slot: int) -> SharedPrefix:
        """Return the prefix of the row in a slot."""
        return self._by_slot[slot]

    def scores(self, queries: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the scores of each row over its own prefix; those of other rows are zero."""
        n_heads, n_rows, group, _ = queries.shape
        out = queries.new_zeros(n_heads, n_rows, group, self.n_positions)
        for prefix, rows, filled in self._parts:
            found = prefix.scores(queries.index_select(1, filled), layer)
            out.index_copy_(1, rows, found[:, : len(rows)])
        return out

    def weighted(self, p: torch.Tensor, layer: int) -> torch.Tensor:
        """Return the sums of each row over its own prefix; those of other rows are zero."""
        n_heads, n_rows, group, _ = p.shape
        head_dim = self._parts[0][0].values[layer].shape[-1]
        out = p.new_zeros(n_heads, n_rows, group, head_dim)
        for prefix, rows, filled in self._parts:
            found = prefix.weighted(p.index_select(1, filled), layer)
            out.index_copy_(1, rows, found[:, : len(rows)])
        return out


def padded_rows(rows: Sequence[int], widths: Sequence[int]) -> torch.Tensor:
    """Return numbers of rows, the last one repeated up to the smallest of these widths that holds them."""
    width = next(width for width in widths if width >= len(rows))
    return torch.tensor([*rows, *[rows[-1]] * (width - len(rows))])


def key_length(n: int) -> int:
    """Return the number of keys to sum over where n are needed: whole blocks, but never 4 or 5 of them.

    A row's sum must not depend on how many keys of no weight follow, and the longest row of a batch decides
    that. MKL's float32 kernel for AVX2 sums 256 or 320 terms in two halves, and other lengths from the start.
    """
    n = round_up(n, BLOCK)
    return 6 * BLOCK if 3 * BLOCK < n < 6 * BLOCK else n


def round_up(n: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least n."""
    return -(-n // step) * step


# --- marks ---


def marked(tokens: Iterable[int], number: int) -> tuple[int, ...]:
    """Return tokens with the mark of an adapter; they have none yet. number: 1 or more; 0 marks nothing."""
    if not number:
        return tuple(tokens)
    above = (number - 1) * NUMBERS
    return tuple(~(token + above) for token in tokens)


def number_of(token: int) -> int:
    """Return the number of the adapter that acts on a token; 0 for none."""
    return 0 if token >= 0 else ~token // NUMBERS + 1


def continued(prompt: tuple[int, ...], output: Iterable[int]) -> tuple[int, ...]:
    """Return tokens that follow a prompt of `placed`: the adapter acts on all of them or on none."""
    return marked(output, number_of(prompt[-1]) if prompt else 0)


def plain(tokens: Iterable[int]) -> tuple[int, ...]:
    """Return tokens without marks."""
    return tuple(token if token >= 0 else ~token % NUMBERS for token in tokens)
