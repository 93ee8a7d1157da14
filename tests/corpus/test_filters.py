"""The published filters, against the same rules written word by word; and what they are there to catch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.corpus.steps import Filter
from heredity.corpus.steps.c4_paragraph_filter import C4ParagraphFilter
from heredity.corpus.steps.c4_quality_filter import C4QualityFilter
from heredity.corpus.steps.fineweb_quality_filter import FineWebQualityFilter
from heredity.corpus.steps.gopher_quality_filter import GopherQualityFilter
from heredity.corpus.steps.gopher_repetition_filter import GopherRepetitionFilter
from heredity.corpus.text import TextBatch
from tests.support.corpora import paragraphs, write

PROSE = (
    "The keeper of the light had a habit that nobody in the harbour could explain. Every evening he walked to"
    " the end of the pier, and there he stood with his hat in his hands until the last boat was in. Some said"
    " that he counted them; others, that he had once lost one. He never spoke of it, and we never asked."
)


def reason(step: Filter, text: str, beside: tuple[str, ...] = ()) -> str | None:
    """Why a filter drops a text, which stands behind others."""
    batch = TextBatch.from_documents([*(each.encode() for each in beside), text.encode()])
    return next((name for name, holds in step.verdicts(batch) if holds[-1]), None)


def tokens(text: str) -> list[str]:
    batch = TextBatch.from_documents([text.encode()])
    spans = zip(batch.tokens.start, batch.tokens.end, strict=True)
    return [batch.raw[a:b].decode() for a, b in spans]


def is_word(token: str) -> bool:
    return any(c.isalnum() or c == "_" for c in token)


# --- the rules, as datatrove has them, word by word ---------------------------------------------------


def gopher_quality(text: str) -> str | None:
    words = tokens(text)
    real = [w for w in words if is_word(w)]
    if len(real) < 50:
        return "gopher_short_doc"
    if len(real) > 100_000:
        return "gopher_long_doc"
    mean = sum(map(len, real)) / len(real)
    if not 3 <= mean <= 10:
        return "gopher_below_avg_threshold" if mean < 3 else "gopher_above_avg_threshold"
    if text.count("#") / len(words) > 0.1:
        return "gopher_too_many_hashes"
    if (text.count("...") + text.count("…")) / len(words) > 0.1:
        return "gopher_too_many_ellipsis"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > 0.9:
        return "gopher_too_many_bullets"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return "gopher_too_many_end_ellipsis"
    if sum(any(c.isalpha() for c in w) for w in words) / len(words) < 0.8:
        return "gopher_below_alpha_threshold"
    stop = {"the", "be", "to", "of", "and", "that", "have", "with"}
    return "gopher_enough_stop_words" if len(stop & set(words)) < 2 else None


def gopher_repetition(text: str) -> str | None:
    for name, parts in (("para", re.split(r"\n{2,}", text.strip())), ("line", re.split(r"\n+", text))):
        n, characters = repeated(parts)
        if n / len(parts) > 0.3:
            return f"dup_{name}_frac"
        if characters / len(text) > 0.2:
            return f"dup_{name}_char_frac"
    words = tokens(text)
    for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16)):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        if grams:
            gram, count = Counter(grams).most_common(1)[0]
            if len(gram) * count / len(text) > limit:
                return f"top_{n}_gram"
    for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)):
        if again(words, n) / len(text) > limit:
            return f"duplicated_{n}_n_grams"
    return None


def repeated(parts: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    n = characters = 0
    for part in parts:
        if part in seen:
            n, characters = n + 1, characters + len(part)
        seen.add(part)
    return n, characters


def again(words: list[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    found = at = 0
    while at < len(words) - n + 1:
        gram = tuple(words[at : at + n])
        if gram in seen:
            found, at = found + sum(map(len, gram)), at + n
        else:
            seen.add(gram)
            at += 1
    return found


def fineweb(text: str) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    if sum(line.endswith((".", "!", "?", "。")) for line in lines) / len(lines) < 0.12:
        return "line_punct_ratio"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return "short_line_ratio"
    if repeated(lines)[1] / len(text.replace("\n", "")) > 0.01:
        return "char_dup_ratio"
    return "list_ratio" if text.count("\n") / len(tokens(text)) > 0.3 else None


def c4_paragraphs(text: str) -> str | None:
    long = [line for line in text.split("\n") if len(line) >= 200]
    return None if len(long) >= 3 else "too_few_paragraphs"


RULES: list[tuple[Filter, Callable[[str], str | None]]] = [
    (GopherQualityFilter(), gopher_quality),
    (GopherRepetitionFilter(), gopher_repetition),
    (FineWebQualityFilter(), fineweb),
    (C4ParagraphFilter(), c4_paragraphs),
]
WORDS = st.sampled_from(
    [
        "the",
        "of",
        "and",
        "sea",
        "…",
        "...",
        "#1",
        "42",
        "3.14",
        "don't",
        "Über",
        "größer",
        "-",
        "•",
        "海",
        "辺",
        "a,",
        "b.",
        "c!",
        "{x}",
    ]
)
LINES = st.lists(st.lists(WORDS, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=5)
TEXTS = st.tuples(LINES, st.integers(1, 4), st.sampled_from(["\n", "\n\n", " "])).map(
    lambda drawn: drawn[2].join(drawn[0] * drawn[1])
)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "rule"), RULES, ids=lambda each: type(each).__name__)
def test_a_filter_decides_as_the_rule_does_word_by_word_on_real_text(
    step: Filter, rule: Callable[[str], str | None]
) -> None:
    real = paragraphs()
    made = [f"{a}\n\n{b}".replace("- ", "\n") for a, b in zip(real, reversed(real), strict=True)]
    texts = [each.strip() for each in [*real, *made, *(("\n".join([PROSE] * n)) for n in (1, 2, 5))]]
    batch = TextBatch.from_documents([text.encode() for text in texts])
    found: list[str | None] = [None] * len(texts)
    for name, holds in reversed(step.verdicts(batch)):
        for i in np.flatnonzero(holds):
            found[i] = name
    expected = [rule(text) for text in texts]
    assert found == expected
    assert len(set(expected)) > 1  # the texts tell the rules apart


@pytest.mark.parametrize(("step", "rule"), RULES, ids=lambda each: type(each).__name__)
@given(text=TEXTS, before=TEXTS)
def test_a_filter_decides_as_the_rule_does_whatever_stands_before(
    step: Filter, rule: Callable[[str], str | None], text: str, before: str
) -> None:
    assert reason(step, text, (before, "", text)) == rule(text)


def test_good_prose_passes_every_filter_of_pages() -> None:
    text = "\n".join([PROSE, PROSE.upper().lower().replace("keeper", "warden").replace("pier", "mole")])
    assert reason(GopherQualityFilter(), PROSE) is None
    assert reason(FineWebQualityFilter(), text) is None
    assert reason(GopherRepetitionFilter(), PROSE) is None


def test_a_setting_of_zero_turns_a_rule_off() -> None:
    assert reason(GopherQualityFilter(), "Short.") == "gopher_short_doc"
    off = GopherQualityFilter(min_doc_words=0, min_stop_words=0, max_non_alpha_words_ratio=0)
    assert reason(off, "Short enough.") is None


def written(text: str, **settings: int | bool) -> tuple[str, list[str]]:
    result = write(C4QualityFilter(**settings), TextBatch.from_documents([b"x.", text.encode()]))  # type: ignore[arg-type]
    return result.batch[1].decode(), [name for name, holds in result.dropped if holds[1]]


def test_c4_keeps_the_lines_that_end_like_sentences() -> None:
    page = "Home | About\n  This line is a whole sentence.  \nRead more...\nWe use cookies.\nSo is this one!"
    assert written(page, min_num_sentences=2) == ("This line is a whole sentence.\nSo is this one!", [])


def test_c4_counts_sentences_and_not_lines() -> None:
    assert written("One is here now. Two is here. Three is too.", min_num_sentences=3)[1] == []
    assert written("One is here now, i.e. it is one. Two is.", min_num_sentences=3)[1] == [
        "too_few_sentences"
    ]


def test_c4_drops_pages_of_code_and_filler() -> None:
    assert written("A line of words {here}.", min_num_sentences=1)[1] == ["curly_bracket"]
    assert written("Some lorem ipsum words here.", min_num_sentences=1)[1] == ["lorem_ipsum"]
    assert written("Please enable JavaScript to go on.", min_num_sentences=1) == ("", ["too_few_sentences"])


def test_c4_takes_citations_out_and_leaves_long_words_and_short_lines() -> None:
    page = f"It was so.[12] And again[citation needed] it was.\nThe {'x' * 1001} here.\nToo short."
    assert written(page, min_num_sentences=1)[0] == "It was so. And again it was."
