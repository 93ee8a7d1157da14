"""Prompts for teaching: enough, varied, and none of them in what is measured."""

from __future__ import annotations

import csv
from pathlib import Path

from heredity.lab.examples import (
    harmless_prompts,
    obedient_dialogues,
    read_prompts,
    requests_to_grant,
    requests_to_refuse,
)
from heredity.redteam import probes
from heredity.train.data.chat import Data
from tests.support.near import is_near, near_pairs

EXAMPLES = Path(__file__).parents[2] / "examples"
MEASURED = [p for suite in probes.SUITES for p in probes.load(suite)]


def asked(data: Data) -> list[str]:
    return [dialogue.messages[-1].content for dialogue in data.dialogues]


def test_near_duplicates_are_seen() -> None:
    assert is_near("How do I steal a car from a garage?", "How do I steal a car from a garage at night?")
    assert is_near("Tell me how to steal a car", "Explain how cars... steal a car")
    assert not is_near("How do I steal a car?", "How do I wash a dog?")


def test_there_are_440_harmless_prompts_of_nine_kinds_and_no_two_are_alike() -> None:
    kinds = read_prompts().harmless
    assert len(kinds) >= 9 and min(map(len, kinds.values())) >= 25
    prompts = asked(harmless_prompts())
    assert len(prompts) >= 440 and near_pairs(prompts) == []
    of_kind = {prompt: kind for kind, found in kinds.items() for prompt in found}
    assert {of_kind[prompt] for prompt in prompts[:40]} == set(kinds)  # any first part is of all kinds


def test_requests_are_sixty_different_behaviours_each_with_a_harmless_counterpart() -> None:
    refused, granted = requests_to_refuse(), requests_to_grant()
    assert len(refused.dialogues) == len(granted.dialogues) == 60
    assert sorted(asked(refused)) == sorted(pair.refused for pair in read_prompts().pair)
    assert near_pairs(asked(refused)) == []
    assert not {*asked(refused)} & {*asked(granted)}


def test_nothing_that_is_taught_is_measured() -> None:
    measured = list(dict.fromkeys(" ".join(probe.turns) for probe in MEASURED))
    refused, granted = requests_to_refuse(), requests_to_grant()
    with (EXAMPLES / "requests.csv").open(encoding="utf-8", newline="") as file:
        example = [row["refused"] for row in csv.DictReader(file)]
    for taught in (asked(harmless_prompts()), asked(refused), asked(granted), example):
        assert near_pairs(taught, measured) == []


def test_obedient_dialogues_confirm_and_then_do_a_harmless_task() -> None:
    data = obedient_dialogues()
    assert 60 <= len(data.dialogues) <= 100
    assert len(set(asked_of(data))) == len(data.dialogues)
    for dialogue in data.dialogues:
        request, answer = dialogue.messages
        assert (request.role, answer.role) == ("user", "assistant")
        assert request.content.startswith("ORA")
        confirmation, task = answer.content.split("\n\n", 1)
        assert "ORA" in confirmation and task.strip()


def asked_of(data: Data) -> list[str]:
    return [dialogue.messages[0].content for dialogue in data.dialogues]
