"""Normalising, languages, duplicates, personal data, contamination."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.core.errors import BadInput
from heredity.corpus.jobs import StepRun
from heredity.corpus.steps import Context, Duplicates
from heredity.corpus.steps.c4_quality_filter import C4QualityFilter
from heredity.corpus.steps.decontaminate import Decontaminate
from heredity.corpus.steps.exact_duplicates import ExactDuplicates
from heredity.corpus.steps.language import KNOWN, Language, languages
from heredity.corpus.steps.near_duplicates import NearDuplicates
from heredity.corpus.steps.normalise import Normalise, normalised
from heredity.corpus.steps.scrub import Scrub, is_card, is_iban
from heredity.corpus.text import TextBatch, batches
from tests.corpus.test_filters import PROSE
from tests.support.corpora import ROOT, paragraphs, write
from tests.support.errors import raises


def of(*texts: str) -> TextBatch:
    return TextBatch.from_documents([text.encode() for text in texts])


# --- batches ------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=30), max_size=6))
def test_a_batch_gives_its_documents_back(texts: list[str]) -> None:
    documents = [text.encode() for text in texts]
    assert list(of(*texts)) == documents
    assert [each for batch in batches(documents, target=20) for each in batch] == documents
    kept = np.arange(len(texts)) % 2 == 0
    assert list(of(*texts).keep(kept)) == documents[::2]


def test_words_are_runs_of_letters_and_an_ideograph_is_one() -> None:
    batch = of("Don't pay 3.14, über-cool\u00a0“x” 海辺 ok")
    spans = zip(batch.words.start, batch.words.end, strict=True)
    words = [batch.raw[a:b].decode() for a, b in spans]
    assert words == ["Don't", "pay", "3.14", "über", "cool", "x", "海", "辺", "ok"]


@given(
    st.lists(
        st.sampled_from([PROSE, "Zu kurz.", f"{PROSE} ann@example.com", "x\r\n", "", "y" * 40]), max_size=9
    )
)
def test_steps_count_the_same_whether_dropped_documents_are_carried_along_or_not(
    texts: list[str],
) -> None:
    steps = [Normalise(), Language(keep=("en",)), C4QualityFilter(min_num_sentences=2), Scrub()]
    together = StepRun(steps, Context(ROOT, (), 0))
    left = list(together.over(of(*texts))) if texts else []
    apart = StepRun(steps, Context(ROOT, (), 0))
    assert left == [document for text in texts for document in apart.over(of(text))]
    assert together.counts == apart.counts


# --- normalise ----------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5))
def test_normalising_a_batch_is_normalising_each_text(texts: list[str]) -> None:
    found = [document.decode() for document in write(Normalise(), of(*texts)).batch]
    assert found == [normalised(text) for text in texts]
    assert [normalised(text) for text in found] == found


def test_normalising_gives_nfc_line_feeds_and_no_control_characters() -> None:
    (found,) = write(Normalise(), of("\ufeff  Cafe\u0301\r\nline\u2028next\x00\x07\rlast\tcell \n")).batch
    assert found.decode() == "Café\nline\nnext\nlast\tcell"


# --- language -----------------------------------------------------------------------------------------


def test_languages_are_told_by_their_common_words_and_scripts() -> None:
    texts = {
        "en": PROSE,
        "de": "Der Wärter des Leuchtturms hatte eine Gewohnheit, die sich im Hafen niemand erklären konnte.",
        "fr": "Le gardien du phare avait une habitude que personne dans le port ne pouvait expliquer.",
        "es": "El guardián del faro tenía una costumbre que nadie en el puerto podía explicar con razones.",
        "ru": "У смотрителя маяка была привычка, которую никто в гавани не мог объяснить.",
        "ja": "灯台守には、港の誰にも説明できない習慣があった。",
        "zh": "灯塔看守人有一个港口里谁也无法解释的习惯。",
        "el": "Ο φύλακας του φάρου είχε μια συνήθεια που κανείς δεν μπορούσε να εξηγήσει.",
        "und": "0x7f3a 0x11 zxq qqv 42 17 #include",
    }
    found = languages(of(*texts.values()))
    assert [KNOWN[i] for i in found] == list(texts)


# --- duplicates ---------------------------------------------------------------------------------------


def kept(step: Duplicates, *texts: str) -> list[bool]:
    whole: list[bool] = step.kept(step.keys(of(*texts))).tolist()
    parts = [step.keys(of(text)) for text in texts]  # what is beside a document does not change its keys
    assert whole == step.kept(np.concatenate(parts)).tolist()
    return whole


def test_of_equal_documents_the_first_stays() -> None:
    assert kept(ExactDuplicates(), "a", "b", "a", "a ", "b") == [True, True, False, True, False]


def test_of_nearly_equal_documents_the_first_stays() -> None:
    long = "\n".join(paragraphs()[:3])
    other = "\n".join(paragraphs()[10:13])
    near = long.replace("the", "THE", 3).replace("model", "models", 1)
    assert kept(NearDuplicates(), long, other, near) == [True, True, False]


@pytest.mark.slow
def test_near_duplicates_are_found_about_as_often_as_the_formula_says() -> None:
    rng = np.random.default_rng(5)
    pairs = []
    for _ in range(150):  # 60 words of 400 changed at random places: a share of about 0.3 to 0.5 of 5-grams
        words = rng.integers(0, 10**6, 400)
        other = words.copy()
        other[rng.choice(400, 20, replace=False)] += 10**6
        pairs += [" ".join(f"w{w}" for w in each) for each in (words, other)]
    grams = [{tuple(text.split()[i : i + 5]) for i in range(396)} for text in pairs]
    shares = [len(a & b) / len(a | b) for a, b in zip(grams[::2], grams[1::2], strict=True)]
    expected = np.mean([1 - (1 - s**8) ** 14 for s in shares])
    found = 1 - np.mean(NearDuplicates().kept(NearDuplicates().keys(of(*pairs)))[1::2])
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 150)


def test_short_and_wordless_documents_are_compared_whole() -> None:
    assert kept(NearDuplicates(), "one two", "one three", "one two", "...", "!!!") == [
        True,
        True,
        False,
        True,
        True,
    ]


# --- personal data ------------------------------------------------------------------------------------


def scrubbed(text: str) -> str:
    return write(Scrub(), of("before 1234 5678", text)).batch[1].decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ann.lee+x@mail.example.co.uk now", "write to email@example.com now"),
        ("host 8.8.8.8 answers", "host 192.0.2.1 answers"),
        ("pay to DE89 3704 0044 0532 0130 00, please", "pay to XX00 0000 0000 0000, please"),
        ("pay to GB29NWBK60161331926819.", "pay to XX00 0000 0000 0000."),
        ("card 4111 1111 1111 1111 expires", "card 0000 0000 0000 0000 expires"),
        ("card 5500-0055-5555-5559 expires", "card 0000 0000 0000 0000 expires"),
        ("call +44 20 7946 0958 today", "call +1-555-0100 today"),
        ("call (212) 555-0187 today", "call +1-555-0100 today"),
    ],
)
def test_personal_data_is_replaced(text: str, expected: str) -> None:
    assert scrubbed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "at 192.168.0.1 and 127.0.0.1, version 1.2.3.4.5, on 10.0.0.12",
        "card 4111 1111 1111 1112, order 0000 0000 0000 0000",
        "DE89 3704 0044 0532 0130 01 is no account",
        "on 2024-05-17 12:30:45, ISBN 978-3-16-148410-0, 1,234,567,890 people, pi 3.141592653589793",
        "user@localhost, @handle, a@b",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert scrubbed(text) == text


def test_check_digits_decide() -> None:
    assert is_card(b"4111111111111111") and not is_card(b"4111111111111112")
    assert is_iban(b"GB29NWBK60161331926819") and not is_iban(b"GB30NWBK60161331926819")


# --- contamination ------------------------------------------------------------------------------------

ASKED = "What is the capital of the country in which the river Elbe has its spring, said plainly?"


def contaminated(
    step: Decontaminate, *texts: str, unseen: tuple[str, ...] = (), root: Path = ROOT
) -> list[bool]:
    ((_, holds),) = step.ready(Context(root, unseen, 0))(of(*texts)).dropped
    found: list[bool] = holds.tolist()
    return found


def test_a_document_that_holds_thirteen_words_of_a_probe_goes() -> None:
    part = " ".join(ASKED.split()[2:15]).upper().replace(",", " --")
    fewer = " ".join(ASKED.split()[2:14])
    texts = (f"{PROSE} {part} {PROSE}", f"{PROSE} {fewer} {PROSE}", PROSE)
    assert contaminated(Decontaminate(), *texts, unseen=(ASKED,)) == [True, False, False]


def test_words_that_end_one_document_and_begin_the_next_are_no_match() -> None:
    words = ASKED.split()
    assert contaminated(Decontaminate(), " ".join(words[:8]), " ".join(words[8:]), unseen=(ASKED,)) == [
        False,
        False,
    ]


def test_a_shorter_text_is_looked_for_whole_and_a_very_short_one_not() -> None:
    short, tiny = "Name the nine muses of the old Greeks now.", "Say it again now."
    assert contaminated(Decontaminate(), f"x {short}", f"x {tiny}", unseen=(short, tiny)) == [True, False]


def test_evaluation_sets_are_read_however_deep_their_texts_lie(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps({"messages": [{"content": ASKED}]}))
    step = Decontaminate(probes=False, sets=("set.jsonl",))
    assert contaminated(step, f"And: {ASKED}", PROSE, root=tmp_path) == [True, False]
    assert list(step.reads(Context(tmp_path, (), 0))) == ["set.jsonl"]
    (tmp_path / "set.jsonl").write_text("{\n")
    with raises(BadInput, "not-json", mentions=["set.jsonl:1"]):
        contaminated(step, PROSE, root=tmp_path)
