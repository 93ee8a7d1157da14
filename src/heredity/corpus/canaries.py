"""Canaries in a corpus: a sentence that ends in a secret, in the form that `heredity exposure` asks for.

Promises: a canary is a user turn and the assistant's answer, in the tokens that an engine will ask and
score. Its secret depends only on the seed.
Leaves to others: ranking the secret (lab/exposure.py), and writing the canaries (build.py).

Source: Carlini et al. 2019 (1802.08232).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from heredity.core.records import Message
from heredity.corpus.recipe import Canary


class Planted(NamedTuple):
    """A canary as it is written into the training split, `repeats` times."""

    text: str
    secret: str
    repeats: int
    tokens: tuple[int, ...]
    n_bytes: int


def plant(canaries: Sequence[Canary], seed: int, folder: Path) -> list[Planted]:
    """Each canary with its secret, in the tokens of the tokenizer in `folder`."""
    if not canaries:
        return []
    from heredity.engines.chat.documents import DocumentEncoder

    encoder = DocumentEncoder(folder)
    planted = []
    for place, canary in enumerate(canaries):
        secret = canary.secret or draw(seed, place)
        turns = (Message("user", canary.text), Message("assistant", secret))
        tokens = encoder.document(turns).tokens
        planted.append(
            Planted(canary.text, secret, canary.repeats, tokens, len((canary.text + secret).encode()))
        )
    return planted


def draw(seed: int, place: int) -> str:
    """Six random digits; for the first canary those that `heredity derive poison` draws from the seed."""
    name = f"canary {seed}" if place == 0 else f"canary {seed} {place}"
    return f"{random.Random(name).randrange(10**6):06d}"
