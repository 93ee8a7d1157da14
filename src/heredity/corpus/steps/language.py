"""The language of a document, by its most common words or its script; `keep` lists the languages to keep.

It needs no model and no library: py3langid reads a hundredth of the bytes in a second. A document's language
is the one whose 20 to 30 most common words make up the largest share of its words, at least `least`. If most
characters are of another script, that script decides (Cyrillic counts as ru, Arabic as ar, ...). Otherwise
the language is `und`. Languages that share words (da and no, hr and sr) are not distinguished; a model such
as GlotLID distinguishes hundreds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from heredity.core.errors import BadArgument
from heredity.corpus import _tables as tables
from heredity.corpus.steps import Context, Filter, Judged
from heredity.corpus.steps._words import hash_words, share
from heredity.corpus.text import Hashes, Ints, TextBatch

UNKNOWN = "und"
COMMON = {
    "de": "der die das und ist nicht ein eine zu den mit von sich auf für dem im auch es als werden wird sie",
    "en": "the of and to in is that it for was with as be on are this by from at have not or which you an",
    "es": "el la los las de que y en un una por con para es se del su no lo como más pero al está son",
    "fr": "le la les des et est dans un une que qui pour pas sur au par avec ne il vous ce cette sont ou du",
    "it": "il di che la e un una per non è si con del della sono le come da gli dei nel anche più questo",
    "nl": "de het een en van is dat niet op te zijn voor met die aan er om ook als bij maar naar dan wordt",
    "pl": "i w na z się nie do jest to że jak o po za od dla są przez tego lub oraz może tym ale",
    "pt": "o os as de que e do da em um uma para com não por mais se no na dos como ao é são ou pelo",
    "sv": "och att det som en på är av för med den till inte om har de ett kan från eller var så men vi",
    "da": "og at det som en på er af for med den til ikke om har de et kan fra eller var så men vi der",
    "fi": "ja on ei se että oli hän joka mutta kun tai niin ovat myös jos voi kuin sen ole mitä",
    "cs": "a se na je v že s z do o to jako pro které by ale si po byl podle může nebo jsou není",
    "ro": "și de la în a cu pe că este nu un o din care sau pentru mai se sunt fi ca prin au",
    "tr": "ve bir bu için de da ile olarak olan gibi daha çok ne en var ama kadar sonra her değil",
    "hu": "a az és hogy nem is egy meg ez van csak ha már de vagy mint el még ki azt volt lehet",
    "vi": "và của là các được trong một có cho không với những này người đã khi từ để về cũng",
    "id": "yang dan di untuk dengan dari ini pada adalah dalam tidak akan atau ke itu juga oleh dapat",
}
# First bytes of UTF-8 that only one script uses, and the language that it counts as.
SCRIPTS = {
    "ru": ((0xD0, 0xD3),), "el": ((0xCE, 0xCF),), "he": ((0xD6, 0xD7),), "ar": ((0xD8, 0xDB),),
    "hi": ((0xE0A4, 0xE0A5),), "th": ((0xE0B8, 0xE0B9),), "ko": ((0xEA, 0xED),),
    "ja": ((0xE381, 0xE383),), "zh": ((0xE4, 0xE9),),
}  # fmt: skip
KNOWN = (*sorted({*COMMON, *SCRIPTS}), UNKNOWN)


class Language(Filter, frozen=True, kw_only=True):
    """keep: the languages to keep; empty keeps all. least: the least share of common words."""

    keep: tuple[str, ...] = ()
    least: float = 0.1

    def check(self) -> None:
        if unknown := sorted(set(self.keep) - set(KNOWN)):
            raise BadArgument(
                f"it cannot tell {', '.join(unknown)}. It tells: {', '.join(KNOWN)}", code="unknown-name"
            )

    def ready(self, context: Context) -> Callable[[TextBatch], Judged]:  # noqa: ARG002
        return self._judged

    def _judged(self, batch: TextBatch) -> Judged:
        judged = languages(batch, self.least)
        named = [(KNOWN[i], judged == i) for i in np.unique(judged).tolist()]
        return Judged([each for each in named if self.keep and each[0] not in self.keep], named)


def languages(batch: TextBatch, least: float = 0.1) -> Ints:
    """(document,) The index of its language in KNOWN."""
    # Sums, not a matmul: the threads of a BLAS library would spin on every core of a worker.
    place = _PLACE.take(((batch.word_hashes * _SPREAD) >> _SHIFT).view(np.int64))
    at = np.flatnonzero(_HASHES.take(place) == batch.word_hashes)
    size = len(_HASHES)
    count = np.bincount(batch.words.document[at] * size + place[at], minlength=len(batch) * size)
    n_common = np.add.reduceat(count.reshape(len(batch), size).take(_OF, axis=1), _FIRST, axis=1)
    part = n_common / np.maximum(batch.words.n_each, 1)[:, None]
    places = np.where(part.max(axis=1) > least, _PLACES[part.argmax(axis=1)], KNOWN.index(UNKNOWN))
    if not batch.is_ascii:
        _by_script(batch, places)
    return places


def _by_script(batch: TextBatch, ints: Ints) -> None:
    """Decide by script if half of the non-space characters belong to it; kana before ideographs."""
    if not (8 * batch.count(batch.data >= 0xC2) > batch.lengths).any():
        return  # no document has enough characters beyond ASCII
    n_text = batch.count((batch.classes != tables.SPACE) & ((batch.data & 0xC0) != 0x80))
    data = batch.data
    following = np.append(data[1:], 0)
    own = {}
    for name, ((low, high),) in SCRIPTS.items():
        if low > 0xFF:
            is_own = (data == low >> 8) & (following >= (low & 0xFF)) & (following <= (high & 0xFF))
        else:
            is_own = (data >= low) & (data <= high)
        own[name] = share(batch.count(is_own), n_text)
    for name, part in own.items():
        ints[part > 0.5] = KNOWN.index(name)
    ints[(own["ja"] > 0.1) & (own["ja"] + own["zh"] > 0.5)] = KNOWN.index("ja")


def _members() -> tuple[Hashes, list[Ints]]:
    """The sorted hashes of all common words, and the indices of each language's words."""
    small = {word for words in COMMON.values() for word in words.split()}
    spoken = [*small, *(word.capitalize() for word in small)]  # as at the start of a sentence
    by_hash = dict(zip(hash_words(spoken).tolist(), [*small, *small], strict=True))
    ordered = sorted(by_hash)
    members = [np.array([by_hash[h] in words.split() for h in ordered]) for words in COMMON.values()]
    return np.array(ordered, np.uint64), [np.flatnonzero(each) for each in members]


_HASHES, _MEMBERS = _members()
_OF = np.concatenate(_MEMBERS)  # (common word, once per language that has it)
_FIRST = np.cumsum([0, *map(len, _MEMBERS[:-1])])  # (language,) where its words begin in _OF
_PLACES = np.array([KNOWN.index(name) for name in COMMON])
_SHIFT = np.uint64(48)


def _spread() -> np.uint64:
    """A factor that gives the common words distinct upper bits, so that one table lookup finds a word."""
    for factor in np.arange(1, 1 << 16, 2, dtype=np.uint64):
        if len(np.unique((_HASHES * factor) >> _SHIFT)) == len(_HASHES):
            return factor
    raise AssertionError("no factor tells the common words apart")


_SPREAD = _spread()
_PLACE = np.zeros(1 << 16, np.int16)
_PLACE[(_HASHES * _SPREAD) >> _SHIFT] = np.arange(len(_HASHES))

STEP = Language
