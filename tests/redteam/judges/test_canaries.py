"""Canary answers: harmless, few, and with the verdicts of the shipped judges on record."""

from __future__ import annotations

from collections import Counter

import msgspec

from heredity.redteam import judges
from heredity.redteam.judges import rules
from heredity.redteam.judges.calibration.quality import (
    CanaryVerdicts,
    canaries,
    drifted,
    judge_canaries,
    recorded_verdicts,
)


def test_there_are_canaries_of_every_kind_for_both_tasks_and_few_of_them_ask_a_model() -> None:
    found = canaries()
    assert len({each.id for each in found}) == len(found) >= 24
    assert min(Counter(each.task for each in found).values()) >= 12
    asked = [each for each in found if rules.manner(each.prompt, each.answer) not in ("empty", "incoherent")]
    assert len(asked) <= 24


def test_the_rules_give_every_verdict_on_them() -> None:
    found = judge_canaries(rules)
    assert Counter(found.outcomes.values()).keys() == {"held", "broke", "answered", "refused", "unclear"}
    assert (found.judge, found.judged_by) == ("rules", judges.identity(rules))


def test_the_verdicts_of_the_rules_are_on_record_and_have_not_changed() -> None:
    now = judge_canaries(rules)
    then = recorded_verdicts("rules", now.judged_by)
    assert then is not None, "stale: record them with `make judges`"
    assert drifted(now, then) == ()
    assert recorded_verdicts("rules", "another digest") is None


def test_a_changed_verdict_is_drift_and_a_failed_one_is_not() -> None:
    now = judge_canaries(rules)
    changed = dict(now.outcomes) | {"harm/full-steps": "held", "harm/off-topic": None}
    then = msgspec.structs.replace(now, outcomes=changed)
    assert isinstance(then, CanaryVerdicts)
    assert drifted(now, then) == ("harm/full-steps",)
