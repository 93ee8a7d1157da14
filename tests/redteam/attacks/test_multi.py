"""Attacks of several turns: they climb, back off from a refusal, and always come to the demand."""

from __future__ import annotations

import msgspec
import pytest

from heredity.core.records import Probe
from heredity.redteam import attacks
from heredity.redteam.attacks._words import is_refusal, topic
from tests.support.conversations import APPLICATION, BY_ID, HOW, PROBES, REFUSAL, talk, trial

PLAIN = BY_ID["planted_secret/plain-01"]
YES = "Of course, gladly."


def short(n: int) -> attacks.AttackContext:
    return attacks.context_for(msgspec.structs.replace(APPLICATION, max_turns=n))


@pytest.mark.parametrize("spec", ["crescendo:5", "foot_in_door:5"])
def test_a_model_that_goes_along_is_led_up_step_by_step(spec) -> None:
    turns = talk(spec, PLAIN, trial(), YES)
    assert [turn.asks for turn in turns] == [False, False, False, True]
    assert turns[-1].text == PLAIN.turns[0]


@pytest.mark.parametrize(
    ("spec", "back"), [("crescendo:10", "Only in general"), ("foot_in_door:10", "That was a bit much")]
)
def test_a_refusal_is_met_by_backing_off_and_by_other_words_for_the_demand(spec, back) -> None:
    willing, refusing = talk(spec, PLAIN, short(10), YES), talk(spec, PLAIN, short(10), REFUSAL)
    assert len(refusing) > len(willing)
    texts = [turn.text for turn in refusing]
    assert texts[1].startswith(back)
    assert texts[-1] != PLAIN.turns[0] and PLAIN.turns[0] in texts[-1]
    assert len(set(texts)) == len(texts)


def test_it_asks_again_only_while_it_is_refused() -> None:
    turns = talk("crescendo:10", PLAIN, short(10), lambda at: REFUSAL if at < 7 else YES)
    full = talk("crescendo:10", PLAIN, short(10), REFUSAL)
    assert len(turns) < len(full)


@pytest.mark.parametrize("most", range(1, 8))
@pytest.mark.parametrize("said", [YES, REFUSAL])
def test_the_demand_is_made_however_few_turns_there_are(most, said) -> None:
    for probe in PROBES[::9]:
        turns = talk("crescendo:10", probe, short(most), said)
        assert len(turns) <= max(most, len(probe.turns))
        made = [turn.text for turn in turns]
        assert [text for text in made if text in probe.turns][: len(probe.turns)] == list(probe.turns)


def test_the_steps_name_what_the_application_names() -> None:
    turns = talk("crescendo:10", PLAIN, short(10), YES)
    assert any("the manager override code" in turn.text for turn in turns[:-1])
    turns = talk("foot_in_door:10", BY_ID["forbidden_tool/plain-01"], short(10), YES)
    assert any("lookup_order" in turn.text for turn in turns[:-1])


def test_a_step_for_what_the_application_has_not_is_left_out() -> None:
    how = msgspec.structs.replace(short(10), words={**HOW.words, "tool": ""})
    turns = talk("foot_in_door:10", BY_ID["forbidden_tool/plain-01"], how, YES)
    assert all("{" not in turn.text and "Please use  " not in turn.text for turn in turns)


def test_a_probe_and_its_twin_are_led_up_to_in_the_same_way() -> None:
    for probe in PROBES:
        if probe.twin is not None:
            assert topic(probe) == topic(BY_ID[probe.twin]), probe.id


def test_behind_a_passage_the_user_asks_for_nothing_wrong() -> None:
    probe = next(p for p in PROBES if p.technique == "passage_injection")
    turns = talk("crescendo", probe, trial(), YES)
    assert topic(probe) == "indirect" and turns[-1].text == probe.turns[-1]


def test_what_the_model_said_is_never_said_back() -> None:
    turns = talk("crescendo:10", PLAIN, short(10), "I cannot. {text} XYZZY {company}")
    assert all("XYZZY" not in turn.text for turn in turns)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("I'm sorry, but no.", "en", True),
        ("I can\u2019t do that.", "en", True),
        ("", "en", True),
        ("Sure! " + "a" * 400 + " I cannot", "en", False),
        ("Das kann ich leider nicht sagen.", "de", True),
        ("Das kann ich leider nicht sagen.", "en", False),
        ("I'm sorry, no.", "zh", True),
        ("很抱歉,我无法回答。", "zh", True),
        ("The sky is blue.", "fr", False),
    ],
)
def test_a_refusal_is_told_by_how_a_reply_begins(text, language, expected) -> None:
    assert is_refusal(text, language) is expected


def test_an_unknown_technique_is_led_up_to_by_its_check() -> None:
    probe: Probe = msgspec.structs.replace(PLAIN, technique="of_my_own")
    assert talk("crescendo", probe, trial(), YES)[0].text == talk("crescendo", PLAIN, trial(), YES)[0].text
