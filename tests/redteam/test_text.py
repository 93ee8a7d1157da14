"""Text is folded the same whatever marks it carries, and no number of marks makes it slow."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.redteam import text as _text

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
ACUTE, DOT = "\u0301", "\u0323"  # of two classes: normalizing sorts them


def plainly(text: str) -> str:
    """What fold() promises, without its limit."""
    text = _text._INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return unicodedata.normalize("NFKC", text.lower())


@given(st.text(max_size=28))
def test_up_to_thirty_marks_nothing_is_left_out(text: str) -> None:
    assert _text.fold(text) == plainly(text)


@pytest.mark.parametrize(
    "word",
    [
        "na\u00efve",
        "\u202eevil",
        "Z\u0323\u0301ebra",
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u0130stanbul",
        "\uff21\uff9e",
    ],
)
def test_ordinary_words_in_any_script_stay_as_they_were(word: str) -> None:
    assert _text.fold(f"{word} " * 50) == plainly(f"{word} " * 50)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tower",
    [
        "a" + (ACUTE + DOT) * 500_000,
        "a" + ("\uff9e" + ACUTE) * 500_000,  # a half-width voiced mark becomes a mark
        "a" + ((ACUTE + DOT) * 15 + "\u200b") * 30_000,  # what stood apart comes together
    ],
)
def test_a_tower_of_marks_is_cut_before_it_is_sorted(tower: str) -> None:
    """Uncut, these would take hours: normalizing is quadratic in the marks on one letter."""
    assert len(_text.fold(f"x {tower} KESTREL")) < 50
    assert "kestrel" in _text.fold(f"x {tower} KESTREL")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the answers are not at {DATA}")
def test_real_answers_are_folded_as_before() -> None:
    for line in (DATA / "gptfuzz_labels/train.jsonl").read_text(encoding="utf-8").splitlines():
        assert _text.fold(json.loads(line)["Response"]) == plainly(json.loads(line)["Response"])
