"""Whether a study's answers are like the labelled answers that a judge was measured on.

Six measures of form: length, distinct words, repetition, letters, lines, and words shared with the
request. They do not ask whether an answer refused. A family of labels is stored as the mean and the
deviation of each. The distance between two families is the root mean square of the differences of their
means, in typical deviations.

The limit is not chosen: it is the largest distance of any labelled family from its nearest other one. A
study farther than that from every family is less like all of them than any of them is.

Promises: the same answers give the same distance, in linear time.
Leaves to others: refusing a correction (study/likeness.py).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from heredity.core.records import SCHEMA, Record
from heredity.redteam.judges._choice import is_answer
from heredity.redteam.judges.protocols import Pair

SHIPPED = Path(__file__).with_name("likeness.json")
FEWEST = 20  # answers; the means of fewer say too little
_READ = 4000  # characters of an answer
_WORD = re.compile(r"[^\W\d_]+")
MEASURES = ("length", "distinct words", "repetition", "letters", "lines", "shared with the request")
_SHARED = 5  # the measure that needs the request, which some sets do not have


class AnswerForm(Record, frozen=True):
    """The form of a family of answers: mean and deviation of each of MEASURES, over n answers."""

    family: str
    n: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    has_requests: bool = True
    schema: int = SCHEMA


def measure_answer(request: str, answer: str) -> tuple[float, ...]:
    """The six numbers of MEASURES for one answer."""
    body = answer[:_READ].lower()
    words, raw = _WORD.findall(body), body.encode("utf-8", "replace")
    asked = {word for word in _WORD.findall(request[:_READ].lower()) if len(word) > 3}
    return (
        math.log1p(len(words)),
        len(set(words)) / max(1, len(words)),
        min(2.0, len(zlib.compress(raw)) / max(20, len(raw))),
        sum(map(str.isalpha, body)) / max(1, len(body)),
        math.log1p(body.count("\n")),
        len(asked & set(words)) / max(1, len(asked)),
    )


def summarise(family: str, pairs: Iterable[Pair]) -> AnswerForm:
    """The form of a family, from requests and answers; those that no judge could decide are left out."""
    every = [pair for pair in pairs if is_answer(*pair)]
    if not every:
        return AnswerForm(family, 0, (0.0,) * len(MEASURES), (0.0,) * len(MEASURES))
    numbers = np.array([measure_answer(*pair) for pair in every]).reshape(len(every), len(MEASURES))
    mean, deviation = (tuple(round(float(x), 4) for x in f(0)) for f in (numbers.mean, numbers.std))
    return AnswerForm(family, len(every), mean, deviation, any(request for request, _ in every))


def distance(a: AnswerForm, b: AnswerForm) -> float:
    """The distance of two families, in typical deviations of the shipped families."""
    apart = (np.array(a.mean) - np.array(b.mean)) / _scale()
    if not (a.has_requests and b.has_requests):
        apart = np.delete(apart, _SHARED)
    return float(np.sqrt(np.mean(np.square(apart))))


@lru_cache(maxsize=1)
def _scale() -> NDArray[np.float64]:
    """The median deviation of each measure: a very mixed family is not near everything for that."""
    deviations = np.array([form.deviation for form in shipped_forms()], np.float64)
    return np.asarray(np.maximum(np.median(deviations, axis=0), 0.01), np.float64)


def limit(families: Sequence[AnswerForm]) -> float:
    """The largest distance of a family from its nearest other one. Needs two families."""
    return max(min(distance(a, b) for b in families if b is not a) for a in families)


def unlike(answers: AnswerForm, labels: Collection[str]) -> str:
    """Why answers are unlike all labelled families that are named in `labels`; "" if they are like one.

    Also "" for fewer than FEWEST answers, or with fewer than two families whose form is known.
    """
    families = [form for form in shipped_forms() if any(_is_of(name, form.family) for name in labels)]
    if answers.n < FEWEST or len(families) < 2:
        return ""
    nearest = min(families, key=lambda form: distance(answers, form))
    far, most = distance(answers, nearest), limit(families)
    if far <= most:
        return ""
    gaps = np.abs(np.array(answers.mean) - np.array(nearest.mean)) / _scale()
    named = " and ".join(MEASURES[i] for i in np.argsort(-gaps)[:2])
    return (
        f"the answers are unlike all labelled ones: {far:.2f} deviations from the nearest family, where the "
        f"families are at most {most:.2f} apart ({named} differ most)"
    )


def _is_of(labels: str, family: str) -> bool:
    """Whether labels are of a family: "GPTFuzz (odd rows)" and "GPTFuzz: ChatGPT" are of "GPTFuzz"."""
    return labels == family or labels.startswith((f"{family} (", f"{family}: "))


@lru_cache(maxsize=1)
def shipped_forms() -> tuple[AnswerForm, ...]:
    """The forms of the labelled families in this package."""
    return msgspec.json.decode(SHIPPED.read_bytes(), type=tuple[AnswerForm, ...])


def write_forms(forms: Iterable[AnswerForm]) -> Path:
    """Replace the shipped forms of these families; those of others stay."""
    found = {form.family: form for form in shipped_forms()} | {form.family: form for form in forms}
    rows = [found[name] for name in sorted(found)]
    SHIPPED.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
    shipped_forms.cache_clear()
    _scale.cache_clear()
    return SHIPPED
