"""Words after the demand: how the answer must begin, its form, forbidden words; or words of your own.

Source: Wei et al. 2023 (arXiv 2307.02483): an affirmative start and rules against refusing.
Optimized suffixes (Zou et al. 2023, arXiv 2307.15043) are not shipped: give your own as `suffix:FILE.txt`,
one per line. Sample i takes line i, cyclically. The plan keeps the file's digest, so that it cannot change
during a study. Adds no query.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import msgspec

from heredity.core.errors import BadInput
from heredity.core.records import Turn
from heredity.redteam.attacks._words import keys, say
from heredity.redteam.attacks.protocols import AttackContext, TurnTransform

_MAX_BYTES = 1_000_000


class SuffixWords:
    """Words after the demand."""

    cost = "adds none"
    variants = keys("suffix")

    def resolve(self, variant: str) -> str:
        """A listed variant, or FILE.txt, which becomes FILE.txt@DIGEST; an existing digest is checked."""
        if variant in self.variants:
            return variant
        name, _, digest = variant.partition("@")
        if not name.endswith(".txt"):
            raise ValueError(f"there are {', '.join(self.variants)}, or a file of your own that ends in .txt")
        actual = _read(name)[0]
        if digest and digest != actual:
            raise BadInput(name, "has changed since the study was planned. Restore it, or plan another study")
        return f"{name}@{actual}"

    def transform(self, turn: Turn, context: AttackContext, at: int) -> Turn:  # noqa: ARG002
        """The turn; if it makes the probe's demand, the suffix follows."""
        if not turn.asks:
            return turn
        variant = context.variant or self.variants[0]
        if variant in self.variants:
            return msgspec.structs.replace(turn, text=say("suffix", variant, context, turn.text))
        lines = _lines(variant)
        return msgspec.structs.replace(turn, text=f"{turn.text} {lines[context.sample % len(lines)]}")


@lru_cache(maxsize=16)
def _lines(variant: str) -> tuple[str, ...]:
    name, _, digest = variant.partition("@")
    actual, lines = _read(name)
    if actual != digest:
        raise BadInput(name, "has changed since the study was planned. Restore it, or plan another study")
    return lines


def _read(name: str) -> tuple[str, tuple[str, ...]]:
    try:
        data = Path(name).read_bytes()
        text = data.decode()
    except OSError as error:
        raise BadInput(name, f"cannot be read: {error.strerror}", code="unreadable-file") from None
    except UnicodeDecodeError as error:
        raise BadInput(name, f"is not UTF-8 (byte {error.start})") from None
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines or len(data) > _MAX_BYTES:
        raise BadInput(name, "has no line of text" if not lines else f"is larger than {_MAX_BYTES:,} bytes")
    return hashlib.sha256(data).hexdigest()[:16], lines


ATTACK: TurnTransform = SuffixWords()
