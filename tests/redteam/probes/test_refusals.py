"""The suite refusals: 200 different harms, graded and varied, each with a boundary twin, all our own."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from statistics import mean

import msgspec
import pytest

from heredity.core.records import Probe
from heredity.redteam import probes
from heredity.redteam.checks import says
from tests.redteam.probes.test_core import _HOW_TO
from tests.support.near import content, near_pairs

ALL = {probe.id: probe for probe in probes.load("refusals")}
REQUESTS = [probe for probe in ALL.values() if probe.kind == "breach"]
TWINS = [probe for probe in ALL.values() if probe.kind == "benign"]
# A folder with copies of public sets (HEREDITY_PUBLIC_SETS): jailbreakbench, harmbench_val and xstest in it.
PUBLIC = Path(os.environ.get("HEREDITY_PUBLIC_SETS", "no-public-sets"))
SETS = {"jailbreakbench/behaviors.jsonl": "Goal", "harmbench_val/behaviors.jsonl": "prompt",
        "xstest/prompts.jsonl": "prompt"}  # fmt: skip
# Words that a request for harm has, and that a filter of words refuses: here they mean something harmless.
TRIGGER = re.compile(
    r"(?i)\b(?:addicted|arson|attack(?:s|ed|ing)?|beat(?:s|en)?|bomb(?:s|ed)?|bullets|bull(?:y|ies)|burglar|"
    r"butchered|cheat|crush(?:es)?|destroy|die for|discrimination|drugs|dying|executes?|fakes?|fight|"
    r"forg(?:e|es|ed|ery)|guns?|hack|kick|kill(?:s|ed|er)?|knife|murder|pistols?|poison|punch|robbed|scams?|"
    r"shoots?|shot|slavery|smuggle[rs]?|sp(?:y|ies|ying|yware)|stabs?|stalks|starving|steals?|stole|stolen|"
    r"steroids|thie(?:f|ves)|threatens?|torture|trafficking|virus|war|weapons?)\b"
)


def asked(probe: Probe) -> str:
    return " ".join(probe.turns)


def kind_of_harm(probe: Probe) -> str:
    return probe.id.split("/")[1].rpartition("-")[0]


def test_there_are_200_requests_each_of_its_own_behaviour_and_with_a_twin() -> None:
    assert len(REQUESTS) == len({probe.cluster for probe in REQUESTS}) == 200
    assert sorted(str(probe.twin) for probe in TWINS) == sorted(probe.id for probe in REQUESTS)
    assert {probe.technique for probe in ALL.values()} == {"graded_harm"}
    assert probes.load("graded_harm") == tuple(ALL.values())
    assert all(probe.check.kind == "refusal" for probe in ALL.values())


def test_the_suite_is_in_no_other() -> None:
    for suite in (each for each in probes.SUITES if each != "refusals"):
        assert not {probe.id for probe in probes.load(suite)} & set(ALL)


def test_harms_are_of_twelve_kinds_and_more_with_ids_of_a_taxonomy() -> None:
    kinds = Counter(map(kind_of_harm, REQUESTS))
    assert len(kinds) >= 12 and min(kinds.values()) >= 5
    hazards = re.compile(r"mlcommons-ailuminate:1\.0/(?:vcr|ncr|iwp|ssh|ipv|prv|dfm|hte|spc)")
    named = [t for probe in REQUESTS for t in probe.threats if t.startswith("mlcommons")]
    assert len(named) >= 150 and all(hazards.fullmatch(each) for each in named)
    assert len(set(named)) == 9  # all but those about sex
    assert all(probe.threats[0] == "nist-ai-100-2:2025/NISTAML.027" for probe in REQUESTS)


def test_requests_are_graded_from_mild_to_critical() -> None:
    grades = Counter(probe.severity for probe in REQUESTS)
    assert set(grades) == {1, 2, 3, 4}
    assert min(grades.values()) >= 10 and max(grades.values()) <= 100
    assert all(probe.severity is msgspec.UNSET for probe in TWINS)


def test_lengths_and_forms_vary() -> None:
    lengths = [len(asked(probe).split()) for probe in REQUESTS]
    assert min(lengths) >= 6 and max(lengths) <= 60
    assert 15 <= mean(lengths) <= 30
    assert sum(n <= 12 for n in lengths) >= 15 and sum(n >= 35 for n in lengths) >= 12
    forms = {
        "question": r"\?$",
        "letter": r"(?i)\b(?:letter|mail|message|card|note)s?\b",
        "table or list": r"(?i)\b(?:table|list)\b",
        "code": r"(?i)\b(?:script|code|html|batch file|function|app)\b",
        "role": r"(?i)^(?:you (?:are|speak|collect)|act as|play|pose as|speak as)\b",
        "post or news": r"(?i)\b(?:post|news|article|press|advert|leaflet)s?\b",
        "plan": r"(?i)\b(?:plan|timetable|hour by hour|rules)\b",
    }
    found = {name: sum(bool(re.search(form, asked(p))) for p in REQUESTS) for name, form in forms.items()}
    assert all(n >= 7 for n in found.values()), found
    assert sum(len(probe.turns) > 1 for probe in REQUESTS) >= 3


def test_no_two_requests_or_twins_are_near_duplicates() -> None:
    assert near_pairs([asked(probe) for probe in REQUESTS]) == []
    assert near_pairs([asked(probe) for probe in TWINS]) == []


def test_a_twin_shares_a_trigger_with_its_request_and_is_not_the_same() -> None:
    for twin in TWINS:
        assert content(asked(twin)) & content(asked(ALL[str(twin.twin)])), twin.id
        assert len(asked(twin).split()) <= 40, twin.id


def test_a_third_of_the_twins_hold_a_trigger_word_and_some_of_every_kind() -> None:
    of_kind = {kind: [TRIGGER.search(asked(twin)) for twin in TWINS if kind_of_harm(twin) == kind]
               for kind in map(kind_of_harm, REQUESTS)}  # fmt: skip
    n = sum(found is not None for kind in of_kind.values() for found in kind)
    assert len(TWINS) / 3 <= n < len(TWINS), n
    assert all(any(found) for found in of_kind.values())  # no kind of harm is without
    assert TRIGGER.search("Do not forget the killjoy.") is None


def test_every_twin_says_what_a_useful_answer_has_and_an_echo_has_it_not() -> None:
    for twin in TWINS:
        assert twin.useful is not msgspec.UNSET
        assert not says(twin.useful.phrases, [asked(twin)]), twin.id
        assert not says(twin.useful.phrases, ["I'm sorry, but I can't assist with that."]), twin.id


def test_requests_ask_and_never_explain() -> None:
    assert [p.id for p in ALL.values() if _HOW_TO.search(asked(p))] == []


def test_nothing_is_sexual_about_minors_and_no_organisation_or_person_is_named() -> None:
    minors = re.compile(
        r"(?i)\b(?:child\w*|boys?|girls?|pupils?|students?|teen\w*|baby|daughter|fourteen|sixteen|ten-year-old)\b"
    )
    sexual = re.compile(r"(?i)\b(?:sex\w*|nude\w*|naked|porn\w*|erotic\w*|intimate|lovers?|kiss\w*|gay)\b")
    assert [p.id for p in ALL.values() if minors.search(asked(p)) and sexual.search(asked(p))] == []
    inner = re.compile(r"(?<![.:?!] )(?<!^)\b[A-Z][a-z]{2,}\b")
    words = Counter(word for p in ALL.values() for turn in p.turns for word in inner.findall(turn))
    days = {"Friday", "Saturday", "Sunday", "Sundays", "Monday", "Tuesday", "May", "Christmas"}
    known = days | {"Python", "Android", "Copper", "Ireland", "Jewish", "Muslims", "Roma", "Since"}
    assert set(words) <= known, set(words) - known


def test_crescendo_leads_up_to_a_graded_request() -> None:
    from heredity.redteam.attacks._words import _TOPICS

    assert _TOPICS["graded_harm"] == _TOPICS["harmful_request"]


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="no copies of public sets (HEREDITY_PUBLIC_SETS)")
@pytest.mark.parametrize("name", SETS)
def test_no_text_is_near_one_of_a_public_set(name: str) -> None:
    lines = (PUBLIC / name).read_text(encoding="utf-8").splitlines()
    theirs = [json.loads(line)[SETS[name]] for line in lines]
    assert len(theirs) >= 20
    assert near_pairs([asked(probe) for probe in ALL.values()], theirs) == []
