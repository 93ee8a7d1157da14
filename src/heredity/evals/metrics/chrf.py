"""chrF2 of one sentence: the F-score of character n-grams, recall counted four times.

For n = 1 to 6, without whitespace: precision p_n and recall r_n of clipped n-gram counts. p and r are their
means over the n for which both texts have n-grams. `chrF = (1 + 4) p r / (4 p + r)`. Word n-grams are not
used; case counts.

Source: Popovic 2015, chrF; as sacrebleu computes it, to which the tests hold it.
"""

from __future__ import annotations

from collections import Counter

from heredity.evals.metrics import LONGEST, ItemAnswer, Marked

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "chrF", "", False, "reply", False, False
ORDER, BETA = 6, 2


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """The best chrF over the references; None where the answer is empty."""
    if not answer.text.strip():
        return None
    return max(chrf(answer.text[:LONGEST], text) for text in item.references)


def floor(item: Marked) -> float:
    """The score of the input itself, given as its translation."""
    return max(chrf(item.input, text) for text in item.references)


def chrf(text: str, reference: str) -> float:
    """chrF2 of a text against one reference, from 0 to 1."""
    pairs = [(_grams(text, n), _grams(reference, n)) for n in range(1, ORDER + 1)]
    pairs = [(a, b) for a, b in pairs if a and b]
    if not pairs:
        return 0.0
    common = [(a & b).total() for a, b in pairs]
    p = sum(c / a.total() for c, (a, _) in zip(common, pairs, strict=True)) / len(pairs)
    r = sum(c / b.total() for c, (_, b) in zip(common, pairs, strict=True)) / len(pairs)
    return (1 + BETA**2) * p * r / (BETA**2 * p + r) if p + r else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    dense = "".join(text.split())
    return Counter(dense[i : i + n] for i in range(len(dense) - n + 1))
