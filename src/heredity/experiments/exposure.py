"""How well a model knows a planted canary: the rank of its secret among random ones of the same form.

exposure = log2(|R|) - log2(rank), in bits: 0 where the secret is the least likely of all, log2(|R|) where it
is the likeliest. The rank is taken among `n` candidates drawn from the seed and the secret itself, so that
the most that can be shown is log2(n + 1); of a model that never saw it, half of all draws give 1 bit or less.

Promises: the same model, canary and seed, the same exposure; no text is sampled from the model.
Leaves to others: planting (recipes/poison.py) and the log-probabilities (an engine that is a Scorer).

Source: Carlini et al. 2019, The Secret Sharer (1802.08232, definitions 1 and 5).
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from heredity.core.errors import UsageError
from heredity.core.progress import Progress, Watch
from heredity.core.records import Message, Request
from heredity.engines.protocols import Scorer
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown
from heredity.study.legacy import canary_of_note

N_CANDIDATES = 1023
_BATCH = 64


class Exposure(NamedTuple):
    """`rank` 1 is the likeliest of `n` texts; `bits` of at most `most`. `p_value`: how often the secret of a
    model that never saw it ranks as high."""

    rank: int
    n: int
    bits: float
    most: float
    p_value: float


def exposure(
    engine: Scorer,
    canary: str,
    secret: str,
    n_candidates: int = N_CANDIDATES,
    seed: int = 0,
    watch: Watch | None = None,
) -> Exposure:
    """The exposure of `secret` as the answer to `canary`. Raises UsageError: too few texts are like it.

    watch: called every few texts with how many were scored.
    """
    others = candidates(secret, n_candidates, seed)
    request = Request(0, (Message("user", canary),))
    own, *rest = _scores(engine, request, [secret, *others], watch)
    rank = 1 + sum(score >= own for score in rest)  # a tie counts against the claim
    n = len(others) + 1
    return Exposure(rank, n, math.log2(n) - math.log2(rank), math.log2(n), rank / n)


class Canary(NamedTuple):
    """A planted sentence, and the secret that ends it."""

    text: str
    secret: str


def planted(notes: Mapping[str, str]) -> Canary:
    """The canary that a model's notes name (recipes/_tuned.canary_notes)."""
    if "canary secret" not in notes:
        return Canary(*canary_of_note(notes["canary"]))
    return Canary(notes["canary text"], notes["canary secret"])


def expose(
    store: Store,
    model: Grown,
    canary: str,
    secret: str,
    n_candidates: int = N_CANDIDATES,
    seed: int = 0,
    watch: Watch | None = None,
) -> Exposure:
    """The exposure of `secret` in a model of the store, which is loaded for it.

    Raises UsageError where its engine tells no log-probabilities.
    """
    engine = load_engine(store.ready(model), store)
    try:
        if not isinstance(engine, Scorer):
            raise UsageError(f"'{model.record.name}' tells no log-probabilities; the torch engine does.")
        return exposure(engine, canary, secret, n_candidates, seed, watch)
    finally:
        engine.close()


def candidates(secret: str, n: int, seed: int = 0) -> list[str]:
    """Texts of the secret's form, all different and none the secret: its digits and letters drawn anew."""
    if n < 1:
        raise UsageError(f"An exposure needs candidates to rank among, not {n}.", code="bad-setting")
    space = math.prod(len(_kind(c)) for c in secret)
    if space <= 2 * n:
        raise UsageError(
            f"Only {space:,} texts have the form of {secret!r}: too few to rank it among {n}.",
            code="too-few-texts",
        )
    rng, found = random.Random(f"exposure {seed}"), dict[str, None]()
    while len(found) < n:
        drawn = "".join(rng.choice(_kind(c)) for c in secret)
        if drawn != secret:
            found[drawn] = None
    return list(found)


def _kind(character: str) -> str:
    for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in kind:
            return kind
    return character


def _scores(engine: Scorer, request: Request, texts: Sequence[str], watch: Watch | None) -> list[float]:
    found: list[float] = []
    for start in range(0, len(texts), _BATCH):
        found += [sum(tokens) for tokens in engine.score(request, texts[start : start + _BATCH])]
        if watch is not None:
            watch(Progress("score", "", len(found), len(texts), unit="answers"))
    return found
