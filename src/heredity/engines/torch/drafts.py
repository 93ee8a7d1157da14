"""Tokens guessed from a row's own text, for idle rows of a step to verify (prompt lookup decoding).

A step has one of a few proven widths, so a batch with few requests computes rows that belong to none. Such a
row takes a guessed token at the position where it would stand. Its slot is a copy of the row's cache. The
guess is kept if the row draws just this token; then several tokens of a row come from one step.

Promises: a draft changes no answer. Each token is drawn from logits after all tokens before it. These come
from a step of a proven shape, and the row's own sampler draws in the same order. A wrong guess leaves its
keys and values only at a masked position, until the true token overwrites them.
Leaves to others: the step itself (decoder.py), and which rows and slots are idle (session.py).

Source: Saxena 2023, Prompt Lookup Decoding; Leviathan et al. 2023 (2211.17192) on verifying drafts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_DRAFT = 7  # tokens per row and step; more were hardly ever all right
_FIRST = 3  # tokens guessed before a row has shown how predictable it is


class TextIndex:
    """A growing text, with the place after the latest occurrence of each pair of tokens."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._after: dict[tuple[int, int], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        text = self.tokens
        for token in tokens:
            if len(text) >= 2:
                self._after[text[-2], text[-1]] = len(text)
            text.append(token)

    def continuation(self, pair: tuple[int, int], n: int) -> list[int]:
        """Return up to n tokens that followed the latest occurrence of a pair; [] if it has none.

        At the end of the text they go on with themselves, as in a loop.
        """
        if (start := self._after.get(pair)) is None:
            return []
        found = self.tokens[start : start + n]
        while len(found) < n:
            found.append(found[len(found) - (len(self.tokens) - start)])
        return found


class Drafter:
    """Guesses the next tokens of one row: from its prompt and output, else from the shared prefix."""

    def __init__(self, prompt: Sequence[int], shared: TextIndex) -> None:
        self._own, self._shared, self._n_prompt = TextIndex(prompt), shared, len(prompt)
        self._n_trusted = _FIRST

    def propose(self, output: Sequence[int], n: int) -> list[int]:
        """Return at most n tokens that may follow the output."""
        text = self._own
        text.extend(output[len(text.tokens) - self._n_prompt :])
        n = min(n, self._n_trusted)
        if n <= 0 or len(text.tokens) < 2:
            return []
        pair = text.tokens[-2], text.tokens[-1]
        return text.continuation(pair, n) or self._shared.continuation(pair, n)

    def note(self, n_right: int) -> None:
        """Learn how many guesses of the last proposal were right."""
        self._n_trusted = min(MAX_DRAFT, 2 * n_right + 1)


def share_out(wanted: Sequence[int], n_idle: int) -> list[int]:
    """Return how many idle rows each row gets: one more each, round by round, until none is left."""
    given = [0] * len(wanted)
    open_rows = [at for at, n in enumerate(wanted) if n > 0]
    while n_idle > 0 and open_rows:
        for at in open_rows[:n_idle]:
            given[at] += 1
        n_idle -= len(open_rows)
        open_rows = [at for at in open_rows if given[at] < wanted[at]]
    return given
