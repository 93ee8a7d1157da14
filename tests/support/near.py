"""Near-duplicates among texts: runs of five words, and the words that carry the meaning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from heredity.redteam.text import fold, words

_PLAIN = frozenset(
    words(
        "a an and are as at be by can do does for from give have he her him his how i if in into is it "
        "its like make me my of on or our out she so some tell text than that the their them they this to "
        "up was we what when where which who will with without would write you your short explain help "
        "want need about not no best way difference between list name "
    )
)


@cache
def runs(text: str, n: int = 5) -> frozenset[tuple[str, ...]]:
    """Return every `n` words in a row that hold two words with a meaning; a shorter text is one run."""
    found = words(fold(text))
    every = frozenset(tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1)))
    return frozenset(run for run in every if len(set(run) - _PLAIN) >= 2) or every


@cache
def content(text: str) -> frozenset[str]:
    """Return the words that carry a text's meaning."""
    return frozenset(words(fold(text))) - _PLAIN


def is_near(a: str, b: str, share: float = 0.25, overlap: float = 0.6) -> bool:
    """Whether `a` and `b` share a quarter of their runs of words, or three fifths of their content words."""
    runs_a, runs_b, content_a, content_b = runs(a), runs(b), content(a), content(b)
    in_runs = len(runs_a & runs_b) / min(len(runs_a), len(runs_b))
    in_words = len(content_a & content_b) / max(1, len(content_a | content_b))
    return in_runs > share or in_words >= overlap


def near_pairs(texts: Sequence[str], others: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Return the near-duplicates between `texts` and `others`, or within `texts`."""
    if others is None:
        return [(a, b) for i, a in enumerate(texts) for b in texts[i + 1 :] if _may(a, b) and is_near(a, b)]
    listed = list(others)
    return [(a, b) for a in texts for b in listed if _may(a, b) and is_near(a, b)]


def _may(a: str, b: str) -> bool:
    return not content(a).isdisjoint(content(b))
