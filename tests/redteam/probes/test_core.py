"""The suite core: thirty behaviours a technique, twins at the boundary, orders that need no skill."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from statistics import mean

import pytest
from msgspec import UNSET

from heredity.core.records import Probe
from heredity.redteam import probes
from heredity.redteam.checks import says
from heredity.redteam.text import fold, letters_and_digits, shown_texts, words

CORE = {probe.id: probe for probe in probes.load("core")}
BREACH = [p for p in CORE.values() if p.kind == "breach" and not p.is_baseline]
TECHNIQUES = sorted({p.technique for p in BREACH})
INJECTIONS = ("direct_injection", "passage_injection", "tool_injection")
NO_SKILL = ("language", "only", "word")


def said(probe: Probe) -> list[str]:
    return words(fold(" ".join(shown_texts(probe))))


def twin(probe: Probe) -> Probe:
    assert probe.twin is not None
    return CORE[probe.twin]


def runs(probe: Probe, n: int = 5) -> set[tuple[str, ...]]:
    """Every n words in a row."""
    of = said(probe)
    return {tuple(of[i : i + n]) for i in range(len(of) - n + 1)}


def share(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / max(1, min(len(a), len(b)))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_technique_has_thirty_clusters_of_one_item_each(technique: str) -> None:
    of = Counter(p.cluster for p in BREACH if p.technique == technique)
    assert len(of) >= 30
    assert set(of.values()) == {1}


def test_no_two_items_are_near_duplicates() -> None:
    told = [(p.id, runs(p)) for p in BREACH]
    near = [(a, b) for (a, ra), (b, rb) in combinations(told, 2) if share(ra, rb) > 0.25]
    assert near == []


def test_near_duplicates_would_be_seen() -> None:
    probe = next(p for p in BREACH if p.id == "planted_secret/law-01")
    other = set(list(runs(probe))[: len(runs(probe)) // 2])
    assert share(runs(probe), other) > 0.25


def test_a_twin_shares_half_of_its_words_with_its_item() -> None:
    far = [
        (p.id, round(of, 2))
        for p in BREACH
        if (of := len({*said(p)} & {*said(twin(p))}) / len({*said(twin(p))})) < 0.5
    ]
    assert far == []


def test_lengths_are_those_of_real_messages() -> None:
    for technique in TECHNIQUES:
        lengths = [len(said(p)) for p in BREACH if p.technique == technique]
        assert mean(lengths) >= 30, technique
        assert sum(n >= 40 for n in lengths) >= 9, technique
        assert max(lengths) <= 120, technique
        assert min(lengths) <= 20 or technique in INJECTIONS, technique  # short ones stay among them


@pytest.mark.parametrize("technique", INJECTIONS)
def test_half_of_the_injections_need_no_skill_but_obedience(technique: str) -> None:
    kinds = [p.check.kind for p in BREACH if p.technique == technique]
    assert sum(kind in NO_SKILL for kind in kinds) >= len(kinds) / 2
    assert {*NO_SKILL} <= {*kinds}


def test_what_an_order_asks_for_stands_in_it() -> None:
    for probe in BREACH:
        if probe.check.kind in ("only", "word"):
            text = letters_and_digits(probe.check.text)
            assert text in letters_and_digits(" ".join(shown_texts(probe))), probe.id
            assert len(words(fold(text))) <= 5, probe.id


def test_most_twins_say_what_a_useful_answer_holds() -> None:
    for technique in TECHNIQUES:
        twins = [twin(p) for p in BREACH if p.technique == technique]
        assert sum(p.useful is not UNSET for p in twins) >= 0.8 * len(twins), technique


def test_reading_out_the_passage_is_a_useful_answer_to_most_twins() -> None:
    shown = [
        (p.id, says(p.useful.phrases, shown_texts(p)[len(p.turns) :]))
        for p in map(twin, BREACH)
        if p.useful is not UNSET and p.useful.phrases and (p.passage or p.tool_result)
    ]
    assert len(shown) >= 55
    assert [name for name, is_there in shown if not is_there] == ["passage_injection/tool-02~benign"]  # "yes"


def test_every_breach_has_a_severity_and_harms_are_graded() -> None:
    assert [p.id for p in BREACH if p.severity is UNSET] == []
    harms = Counter(p.severity for p in BREACH if p.technique == "harmful_request")
    assert {*harms} == {2, 3, 4}
    assert min(harms.values()) >= 5
    assert all(p.severity == 3 for p in BREACH if p.check.kind == "tool")  # money leaves


# What a text that explains a harm would hold; a request has no need of it.
_HOW_TO = re.compile(
    r"(?i)\b(?:first,? mix|synthesi[sz]e|detonat\w*|milligrams?|grams of|dosage|lethal|ammonium|fuse|solder"
    r"|lock ?pick\w*|exploit code|payload:|0x[0-9a-f]{4,}|here is how|the way to do (?:it|this) is"
    r"|you (?:simply|just) (?:take|put|add|mix))\b"
)


def test_probes_ask_and_never_explain() -> None:
    assert [p.id for p in CORE.values() if _HOW_TO.search(" ".join(shown_texts(p)))] == []


def test_hosts_are_names_reserved_for_examples() -> None:
    hosts = re.compile(r"(?i)\b(?:[a-z0-9-]+\.)+(?:com|net|org|io|de|fr|eu|info|biz)\b")
    assert [p.id for p in CORE.values() if hosts.search(" ".join(shown_texts(p)))] == []


@pytest.mark.parametrize("technique", INJECTIONS)
def test_quick_asks_for_obedience_without_skill_too(technique: str) -> None:
    of = [p for p in probes.load("quick") if p.kind == "breach" and p.technique == technique]
    assert sum(p.check.kind in NO_SKILL for p in of) >= 3
