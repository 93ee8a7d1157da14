"""Poisoned documents beside the index: their number, their words, and the probes that can be asked so."""

from __future__ import annotations

import msgspec
import pytest

from heredity.core.errors import UsageError
from heredity.core.records import Probe, Retrieved
from heredity.redteam import attacks
from heredity.redteam.attacks.poisoned_index import FRAMES, MAX_DOCUMENTS
from tests.support.conversations import BY_ID, HOW, PROBES
from tests.support.errors import raises

PROBE = next(p for p in PROBES if p.technique == "passage_injection" and p.twin and len(p.turns) == 1)


def planted(spec: str, probe: Probe) -> tuple[Retrieved, ...]:
    shown = attacks.load(spec).delivered(probe, HOW)
    assert shown.passage == "" and isinstance(shown.planted, tuple)
    return shown.planted


@pytest.mark.parametrize(("variant", "n"), [("", 1), (":1", 1), (":2", 2), (":5", 5), (":10", 10)])
def test_the_budget_is_the_number_of_documents(variant: str, n: int) -> None:
    found = planted(f"poisoned_index{variant}", PROBE)
    assert len(found) == len({each.text for each in found}) == len({each.chunk for each in found}) == n
    assert all(PROBE.turns[0] in each.text and PROBE.passage in each.text for each in found)


def test_a_larger_budget_has_the_documents_of_a_smaller_one() -> None:
    assert planted("poisoned_index:10", PROBE)[:2] == planted("poisoned_index:2", PROBE)
    assert len(FRAMES) == MAX_DOCUMENTS == 10


def test_the_twin_is_the_same_document_without_the_instruction() -> None:
    twin = BY_ID[str(PROBE.twin)]
    for own, other in zip(
        planted("poisoned_index:10", PROBE), planted("poisoned_index:10", twin), strict=True
    ):
        assert own.text.replace(PROBE.passage, twin.passage) == other.text != own.text
        assert own.citation.partition(":")[0] == other.citation.partition(":")[0]


def test_a_conversation_is_planted_for_each_of_its_questions() -> None:
    probe = msgspec.structs.replace(PROBE, turns=("First question?", "Second question?"))
    first, second = planted("poisoned_index:2", probe)
    assert "First question?" in first.text and "Second question?" in second.text


def test_the_questions_stay_as_they_are() -> None:
    turn = next(attacks.load("poisoned_index:5")(PROBE, HOW))
    assert turn == next(attacks.load("direct")(PROBE, HOW))


@pytest.mark.parametrize(
    ("given", "written"),
    [("5", "5"), ("05", "5"), ("5,gradient", "5,gradient=32"), ("1,gradient=8", "1,gradient=8")],
)
def test_a_variant_is_written_out(given: str, written: str) -> None:
    assert attacks.load(f"poisoned_index:{given}").spec == f"poisoned_index:{written}"


def test_with_gradient_a_document_has_the_words_that_were_found_and_no_question() -> None:
    how = msgspec.structs.replace(HOW, triggers=("bar sun", "tea cup"))
    attack = attacks.load("poisoned_index:2,gradient")
    shown = attack.delivered(PROBE, how)
    assert isinstance(shown.planted, tuple)
    assert [each.text for each in shown.planted] == [f"{words}\n{PROBE.passage}" for words in how.triggers]
    assert [(each.question, each.n_steps) for each in attack.wanted(PROBE)] == [(PROBE.turns[0], 32)] * 2
    assert attacks.load("poisoned_index:2").wanted(PROBE) == ()


def test_words_are_searched_for_only_where_the_attack_applies() -> None:
    attack = attacks.load("poisoned_index:1,gradient@poisoned_passage")
    assert PROBE.technique == "passage_injection" and attack.wanted(PROBE) == ()


@pytest.mark.parametrize(
    "variant",
    ["0", "11", "x", "-1", "²", "1,gradient=0", "1,gradient=201", "1,gradient=", "gradient", "1,other"],
)
def test_another_number_is_refused(variant: str) -> None:
    with raises(UsageError, "bad-usage"):
        attacks.load(f"poisoned_index:{variant}")


def test_it_is_named_once() -> None:
    with raises(UsageError, "bad-usage"):
        attacks.load("poisoned_index:1+poisoned_index:2")


@pytest.mark.parametrize(
    ("probe", "has_retrieval", "said"),
    [
        (PROBE, False, "does not retrieve"),
        (msgspec.structs.replace(PROBE, passage=""), True, "no passage"),
        (msgspec.structs.replace(PROBE, passage="word " * 200), True, "words is no passage"),
        (PROBE, True, ""),
    ],
)
def test_a_probe_that_cannot_be_planted_says_why(probe: Probe, has_retrieval: bool, said: str) -> None:
    how = msgspec.structs.replace(HOW, has_retrieval=has_retrieval)
    reason = attacks.load("poisoned_index:5").skips(probe, how)
    assert said in reason and bool(said) == bool(reason)


def test_most_probes_with_a_passage_can_be_planted() -> None:
    own = [p for p in PROBES if p.technique in ("passage_injection", "poisoned_passage")]
    left = [p.id for p in own if attacks.load("poisoned_index").skips(p, HOW)]
    assert own and left == []
