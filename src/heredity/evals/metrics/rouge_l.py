"""ROUGE-L F1: the longest common subsequence of words.

Words are runs of letters and digits in lower case, without stemming. L is the length of the longest common
subsequence. Precision p is L / words of the answer, and recall r is L / words of the reference. `F1 = 2 p r
/ (p + r)`.

Source: Lin 2004, ROUGE; as the package rouge-score computes "rougeL", to which the tests hold it.
"""

from __future__ import annotations

import re

from heredity.evals.metrics import LONGEST, ItemAnswer, Marked

TITLE, UNIT, IS_SHARE, ASKS, NEEDS_OPTIONS, SHOWS_LETTERS = "ROUGE-L", "", False, "reply", False, False


def score(item: Marked, answer: ItemAnswer) -> float | None:
    """The best F1 over the references; None where the answer has no word."""
    if not words(answer.text):
        return None
    return max(rouge_l(answer.text[:LONGEST], text) for text in item.references)


def floor(item: Marked) -> float:
    """The score of the input itself, given as its summary."""
    return max(rouge_l(item.input, text) for text in item.references)


def rouge_l(text: str, reference: str) -> float:
    """F1 of a text against one reference, from 0 to 1."""
    a, b = words(text), words(reference)
    n = common(a, b)
    return 2 * n / (len(a) + len(b)) if n else 0.0


def words(text: str) -> list[str]:
    """The words that are compared."""
    return re.findall(r"[^\W_]+", text.lower())


def common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
