"""Measure how well a model memorized a planted canary: the rank of its secret among random alternatives.

exposure = log2(|R|) - log2(rank), in bits: zero if the secret is the least likely, log2(|R|) if it is the
likeliest. The secret is ranked together with `n` candidates drawn from the seed, so the maximum is log2(n +
1). For a model that never saw it, half of all draws give 1 bit or less.

Promises: the same model, canary and seed give the same exposure. No text is sampled from the model.

Source: Carlini et al. 2019, The Secret Sharer (1802.08232, definitions 1 and 5).
"""

from __future__ import annotations

import math
import random
import string
from typing import NamedTuple

from heredity.core.errors import UsageError
from heredity.core.progress import Progress, Watch
from heredity.core.records import Message, Request
from heredity.engines import Scorer, capabilities
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Grown

N_CANDIDATES = 1023
_BATCH = 64


class Exposure(NamedTuple):
    """The exposure of a secret, in `bits`, of at most `most`. `rank` 1 is the likeliest of `n` texts.
    `p_value`: the probability of this rank or a better one for a model that never saw the secret."""

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
    """Return the exposure of `secret` as the answer to `canary`. Raises UsageError if too few texts have
    its form.

    watch: a callback that receives the number of scored texts.
    """
    others = candidates(secret, n_candidates, seed)
    request = Request(0, (Message("user", canary),))
    texts = [secret, *others]
    scores: list[float] = []
    for start in range(0, len(texts), _BATCH):
        scores += [sum(each.logs) for each in engine.score(request, texts[start : start + _BATCH])]
        if watch is not None:
            watch(Progress("score", "", len(scores), len(texts), unit="answers"))
    own, *rest = scores
    rank = 1 + sum(score >= own for score in rest)  # a tie counts against the claim
    n = len(others) + 1
    return Exposure(rank, n, math.log2(n) - math.log2(rank), math.log2(n), rank / n)


def planted_canary(store: Store, model: Grown) -> tuple[str, str]:
    """The canary and its secret that `heredity derive poison` put into a model or its nearest ancestor.

    Raises UsageError if none was poisoned.
    """
    lineage = (model.record, *store.ancestors(model.record))
    notes = next((each.notes for each in lineage if "canary secret" in each.notes), None)
    if notes is None:
        raise UsageError(
            "Give both --canary and --secret, or a model that was poisoned or descends from such a model."
        )
    return notes["canary text"], notes["canary secret"]


def expose(
    store: Store,
    model: Grown,
    canary: str,
    secret: str,
    n_candidates: int = N_CANDIDATES,
    seed: int = 0,
    watch: Watch | None = None,
) -> Exposure:
    """Load a model of the store and return the exposure of `secret` in it.

    Raises UsageError if its engine computes no log-probabilities.
    """
    engine = load_engine(store.ready(model), store)
    try:
        if (scorer := capabilities(engine).scorer) is None:
            raise UsageError(f"The engine of '{model.record.name}' computes no log-probabilities; use torch.")
        return exposure(scorer, canary, secret, n_candidates, seed, watch)
    finally:
        engine.close()


def candidates(secret: str, n: int, seed: int = 0) -> list[str]:
    """Draw `n` distinct texts of the secret's form, without the secret: its digits and letters are
    redrawn."""
    if n < 1:
        raise UsageError(f"An exposure needs candidates to rank among, not {n}.", code="bad-setting")
    space = math.prod(len(_kind(c)) for c in secret)
    if space <= 2 * n:
        raise UsageError(f"Only {space:,} texts have the form of {secret!r}: too few to rank it among {n}.")
    rng, texts = random.Random(f"exposure {seed}"), dict[str, None]()
    while len(texts) < n:
        drawn = "".join(rng.choice(_kind(c)) for c in secret)
        if drawn != secret:
            texts[drawn] = None
    return list(texts)


def _kind(character: str) -> str:
    for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        if character in kind:
            return kind
    return character
