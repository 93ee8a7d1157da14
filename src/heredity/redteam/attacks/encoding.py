"""The user's words in disguise: an encoding to undo, look-alike letters, or invisible characters.

Source: Wei et al. 2023 (arXiv 2307.02483) for base64 and leetspeak. Yuan et al. 2023 (arXiv 2308.06463) for
ciphers. Boucher et al. 2022 (arXiv 2106.09898) for homoglyphs and invisible characters.
base64 and rot13 add a sentence with instructions. The others disguise the words in place, except the parts of
a marker and the names of tools. Adds no query.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable

from heredity.redteam.attacks._words import change_unprotected, say
from heredity.redteam.attacks.protocols import AttackContext, TextTransform

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
# Cyrillic letters that are drawn like Latin ones.
_LOOKALIKES = str.maketrans("aceijopsxyABCEHIKMOPTX", "асеіјорѕхуАВСЕНІКМОРТХ")
_ZERO_WIDTH = "\u200b"


def _split_words(part: str) -> str:
    """A zero-width space between every two letters or digits."""
    pairs = zip(part, part[1:] + " ", strict=False)
    return "".join(a + _ZERO_WIDTH if a.isalnum() and b.isalnum() else a for a, b in pairs)


_DISGUISES: dict[str, Callable[[str, AttackContext], str]] = {
    "base64": lambda text, context: say(
        "encoding", "base64", context, base64.b64encode(text.encode()).decode()
    ),
    "rot13": lambda text, context: say("encoding", "rot13", context, codecs.encode(text, "rot13")),
    "leetspeak": lambda text, _: change_unprotected(text, lambda part: part.translate(_LEET)),
    "homoglyph": lambda text, _: change_unprotected(text, lambda part: part.translate(_LOOKALIKES)),
    "zero_width": lambda text, _: change_unprotected(text, _split_words),
}


class Encoding:
    """The text in the disguise that the variant names."""

    cost = "adds none"
    variants = tuple(_DISGUISES)

    def rewrite(self, text: str, context: AttackContext) -> str:
        """The text in its disguise."""
        return _DISGUISES[context.variant or self.variants[0]](text, context)


ATTACK: TextTransform = Encoding()
