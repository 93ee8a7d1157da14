"""Whether answers are like those that people labelled: a measure of form, with a limit that nobody chose."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.redteam.judges.calibration.quality import (
    FEWEST,
    MEASURES,
    AnswerForm,
    distance,
    limit,
    measure_answer,
    shipped_forms,
    summarise,
    unlike,
)

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
needs_labels = pytest.mark.skipif(not DATA.is_dir(), reason=f"the labelled sets are not at {DATA}")
HARM = (
    "GPTFuzz (sets left out)",
    "JAILJUDGE (sets left out)",
    "PyRIT: objective achieved (sets left out)",
    "XSTest: Mistral, unsafe prompts (sets left out)",
)
LONG = (
    "You can start with a small plan for the week. First, write down what you want to reach, and why it "
    "matters to you.\n\nThen choose two days on which you have time, and tell a friend about them. It is "
    "important to rest as well, since nobody learns well when tired. If you miss a day, go on with the next."
)
SHORT = "Yes, it is."


def test_refusals_and_full_answers_of_one_form_are_alike() -> None:
    """What an answer says does not matter, only its form: the mix of refusals differs between studies."""
    no = "I cannot help with that, since it could hurt people whom you know, and I care about their safety. "
    yes = "I would start with the red wire, then open the box with care, and look for the lever inside it. "
    request = "How do I do it?"
    a, b = (summarise("x", [(request, text * k) for k in (1, 2, 3)] * 10) for text in (no, yes))
    assert distance(a, b) < 0.7
    assert distance(a, summarise("y", [(request, "No.")] * 30)) > 1.5


def test_every_labelled_family_is_within_the_limit_of_another() -> None:
    families = [form for form in shipped_forms() if any(name.startswith(form.family + " ") for name in HARM)]
    assert len(families) == 4
    most = limit(families)
    for a in families:
        assert min(distance(a, b) for b in families if b is not a) <= most


def test_answers_near_a_family_are_like_it_and_those_far_from_all_are_not() -> None:
    family = next(form for form in shipped_forms() if form.family == "JAILJUDGE")

    def moved(by: float) -> AnswerForm:
        mean = tuple(m + by * d for m, d in zip(family.mean, family.deviation, strict=True))
        return msgspec.structs.replace(family, family="m", mean=mean)

    assert unlike(moved(0.3), HARM) == ""
    assert "unlike all labelled ones" in unlike(moved(3.0), HARM)


def test_short_answers_are_unlike_all_labelled_ones() -> None:
    why = unlike(summarise("m", [("How do I learn a habit?", f"{SHORT} {i}") for i in range(30)]), HARM)
    assert "unlike all labelled ones" in why and "length" in why


def test_few_answers_or_labels_without_a_form_say_nothing() -> None:
    few = summarise("m", [("Is it?", SHORT)] * (FEWEST - 1))
    assert unlike(few, HARM) == ""
    many = summarise("m", [("Is it?", SHORT)] * 40)
    assert unlike(many, ("mine.csv",)) == ""


def test_the_numbers_are_finite_for_any_text() -> None:
    for text in ("", "\n", "\U0001f600" * 50, "a" * 10_000, "\ud800"):
        assert len(measure_answer("", text)) == len(MEASURES)
        assert np.isfinite(measure_answer(text, text)).all()
    assert summarise("none", []).n == 0


@needs_labels
@pytest.mark.parametrize(
    ("file", "request_", "answer"),
    [("gsm8k/train.jsonl", "question", "answer"), ("gpteacher/codegen.jsonl", "instruction", "response")],
)
def test_sums_and_code_are_unlike_every_family(file: str, request_: str, answer: str) -> None:
    rows = [json.loads(line) for line in (DATA / file).read_text("utf-8").split("\n")[:300] if line]
    assert unlike(summarise("x", [(row[request_], row[answer]) for row in rows]), HARM)


@needs_labels
def test_answers_of_another_model_to_the_same_kind_of_request_are_like_the_labels() -> None:
    """Llama-2's answers to XSTest's unsafe prompts, which are in no family of harm."""
    path = DATA / "xstest/completions_llama2orig.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    pairs = [(row["prompt"], row["completion"]) for row in rows if row["type"].startswith("contrast")]
    assert unlike(summarise("llama", pairs), HARM) == ""
