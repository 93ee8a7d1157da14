"""Attacks lead up to a demand in other words for each behaviour, and as before in an older plan."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.redteam.attacks import AttackContext
from heredity.redteam.attacks._words import languages, table
from heredity.study.plan import Analysis, Plan, write_plan
from heredity.study.resolve import declare
from tests.support.conversations import BY_ID, PROBES, talk, trial
from tests.support.studies import plan, responses, study

YES = "Of course, gladly."
TECHNIQUES = ("planted_secret", "prompt_extraction", "direct_injection", "forbidden_tool")
LADDERS = ("crescendo:5", "foot_in_door:5")


def openings(spec: str, technique: str, n: int, how: AttackContext | None = None) -> list[tuple[str, ...]]:
    """The first `n` texts to each breach probe of a technique, one probe for each behaviour."""
    asked = {p.cluster: p for p in PROBES if p.technique == technique and p.kind == "breach"}
    return [tuple(t.text for t in talk(spec, p, how or trial(), YES)[:n]) for p in asked.values()]


@pytest.mark.parametrize("spec", LADDERS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_behaviours_differ_from_the_first_turn(spec: str, technique: str) -> None:
    first, two = openings(spec, technique, 1), openings(spec, technique, 2)
    assert len(first) >= 25
    assert len(set(first)) >= 0.7 * len(first)
    assert len(set(two)) >= len(two) - 1


@pytest.mark.parametrize("tongue", languages())
def test_behaviours_differ_in_every_language(tongue: str) -> None:
    two = openings(f"crescendo:5+language:{tongue}", "planted_secret", 2)
    assert len(set(two)) >= len(two) - 1


@pytest.mark.parametrize("spec", LADDERS)
def test_a_behaviour_keeps_its_words_and_its_twin_has_them(spec: str) -> None:
    for probe in PROBES:
        if probe.kind == "breach" and probe.twin and probe.technique in TECHNIQUES:
            own = [t.text for t in talk(spec, probe, trial(), YES) if not t.asks]
            assert own == [t.text for t in talk(spec, probe, trial(sample=3, seed=9), YES) if not t.asks]
            twin = BY_ID[probe.twin]
            theirs = [t.text for t in talk(spec, twin, trial(), YES) if not t.asks]
            assert own[0] == theirs[0] or len(probe.turns) != len(twin.turns)


def test_a_plan_of_a_release_with_shared_steps_keeps_them() -> None:
    how = msgspec.structs.replace(trial(), has_shared_steps=True)
    words = table("en")["crescendo"]["secret"]
    assert {each[0] for each in openings("crescendo:5", "planted_secret", 1, how)} == {words[1]}


@pytest.mark.parametrize("tongue", ["en", *languages()])
def test_every_language_has_as_many_remarks_and_every_step_has_its_rewordings(tongue: str) -> None:
    ours, english = table(tongue)["asides"], table("en")["asides"]
    for key, remarks in english.items():
        assert len(set(ours[key])) == len(ours[key]) == len(remarks)
        assert tongue == "en" or not set(ours[key]) & set(remarks)
    for attack, kinds in table("en")["rewordings"].items():
        for kind, steps in kinds.items():
            written = table("en")[attack][kind]
            assert len(steps) == len(written)
            for step, others in zip(written, steps, strict=True):
                assert step not in others and len(set(others)) == len(others)
                slots = {"{forbidden_tool}", "{secret_name}", "{tool}"}
                assert all(
                    {s for s in slots if s in each} == {s for s in slots if s in step} for each in others
                )


def first_words(made: Plan, folder: Path) -> set[str]:
    study(folder, made).run()
    rows = [row for row in responses(folder) if row.attack.startswith("crescendo")]
    return {row.exchanges[0].prompt for row in rows if row.exchanges}


def test_a_new_plan_says_so_and_asks_each_behaviour_in_its_words(tmp_path: Path) -> None:
    made = declare(msgspec.structs.replace(plan(n=6, samples=1), attacks=("crescendo:5",)))
    assert isinstance(made.analysis, Analysis) and made.analysis.steps == "by_behaviour"
    former = msgspec.structs.replace(made, analysis=msgspec.structs.replace(made.analysis, steps=None))
    assert len(first_words(made, tmp_path / "new")) > len(first_words(former, tmp_path / "former"))


def test_a_folder_with_shared_steps_is_resumed_with_them(tmp_path: Path) -> None:
    made = declare(msgspec.structs.replace(plan(n=6, samples=1), attacks=("crescendo:5",)))
    assert isinstance(made.analysis, Analysis)
    former = msgspec.structs.replace(made, analysis=msgspec.structs.replace(made.analysis, steps=None))
    write_plan(tmp_path, former)
    assert write_plan(tmp_path, made) == former and former.has_shared_steps


def test_a_plan_without_such_an_attack_has_the_digest_that_it_had() -> None:
    made = declare(plan(n=2))
    assert isinstance(made.analysis, Analysis) and made.analysis.steps is None
