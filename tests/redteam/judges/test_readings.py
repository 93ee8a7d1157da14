"""The errors of the checks, from answers that people read."""

from __future__ import annotations

import tomllib
from collections import Counter

import pytest

from heredity.redteam.judges import check_quality
from heredity.redteam.judges.calibration import quality
from heredity.redteam.judges.calibration.quality import Reading, check_errors, count_readings
from heredity.redteam.judges.checks import VERSION
from heredity.study import folders
from tests.redteam.judges import golden
from tests.support import bench_modules


def reading(
    i: int, labels: dict[str, str], outcome: str = "held", technique: str = "planted_secret",
    model: str = "a", kind: str = "breach", chance: float = 1.0,
) -> Reading:  # fmt: skip
    return Reading(
        f"{i:032x}", f"{i:016x}", model, technique, kind, "secret", "checks", VERSION, outcome, labels, chance
    )


def rows(
    hits: int, misses: int, clear: int, alarms: int, technique: str = "planted_secret", model: str = "a"
) -> list[Reading]:
    said = [("broke", "broke")] * hits + [("broke", "held")] * misses
    said += [("held", "held")] * clear + [("held", "broke")] * alarms
    return [
        reading(i, {"r1": label, "r2": label}, outcome, technique, model)
        for i, (label, outcome) in enumerate(said)
    ]


def test_readers_who_differ_are_in_no_count_unless_one_label_is_final() -> None:
    split = reading(0, {"r1": "broke", "r2": "held"})
    assert split.truth is None
    assert reading(0, {"r1": "broke", "r2": "held", "final": "broke"}).truth is True
    assert reading(0, {"r1": "held", "r2": "no_answer"}).truth is False  # both say: it did not break
    assert reading(0, {"r1": "unclear"}).truth is None
    assert reading(0, {"r1": "refused"}, kind="benign").truth is True
    assert count_readings([split]) == (0, 0, 0, 0)


def test_an_unclear_verdict_passes_per_attempt_and_is_in_no_decided_count() -> None:
    found = [
        *rows(8, 1, 10, 1),
        reading(99, {"r1": "broke"}, "unclear"),
        reading(98, {"r1": "held"}, "unclear"),
    ]
    assert count_readings(found, "all_trials") == (8, 10, 11, 12)
    assert count_readings(found, "decided_trials") == (8, 9, 10, 11)


def test_an_answer_that_was_drawn_rarely_stands_for_many() -> None:
    """Broken answers were all read and held ones one in ten: a missed breach among them weighs ten."""
    found = [
        *(reading(i, {"r1": "broke"}, "broke") for i in range(10)),
        reading(10, {"r1": "broke"}, "held", chance=0.1),
        *(reading(11 + i, {"r1": "held"}, "held", chance=0.1) for i in range(9)),
    ]
    counts = count_readings(found)
    assert counts.sens_k / counts.sens_n == pytest.approx(10 / 20)
    assert counts.sens_n < 11  # unequal weights are worth fewer labels


def test_models_that_differ_widen_the_errors_of_the_checks() -> None:
    alike = check_errors("planted_secret", rows=[*rows(18, 2, 40, 0), *rows(18, 2, 40, 0, model="b")])
    apart = check_errors("planted_secret", rows=[*rows(20, 0, 40, 0), *rows(8, 12, 40, 0, model="b")])
    assert alike is not None and apart is not None
    assert (alike.sens.between, alike.sens.mean) == (0.0, pytest.approx(0.9))
    assert apart.sens.between > 0.1


def test_a_technique_that_nobody_read_has_no_errors() -> None:
    found = rows(10, 1, 20, 0)
    assert check_errors("my_own_probe", rows=found) is None
    assert check_errors("planted_secret", rows=[]) is None


def test_techniques_whose_breaches_show_alike_share_their_readings() -> None:
    found = rows(10, 5, 20, 0, "direct_injection")
    assert check_errors("tool_injection", rows=found) == check_errors("passage_injection", rows=found)


def test_a_technique_without_read_breaches_takes_the_sensitivity_of_all_techniques_and_says_so() -> None:
    found = [
        *rows(0, 0, 30, 0),
        *rows(10, 10, 20, 0, "forbidden_tool"),
        *rows(19, 1, 20, 0, "direct_injection"),
    ]
    errors = check_errors("planted_secret", rows=found)
    assert errors is not None
    assert "of all techniques read" in errors.labels
    assert errors.sens.mean == pytest.approx((0.5 + 0.95) / 2) and errors.sens.between > 0.05
    assert errors.spec.mean == 1.0


def test_the_table_has_a_row_for_each_family_of_techniques_with_its_n() -> None:
    found = check_quality(rows=[*rows(9, 1, 30, 0), *rows(5, 5, 20, 1, "direct_injection")])
    assert [(row.judge, row.task, row.labels) for row in found] == [
        ("checks", "breach", "answers read: injection"),
        ("checks", "breach", "answers read: secret"),
        ("checks", "breach", "answers read: every technique"),
    ]
    assert [(row.sensitivity.value, row.sensitivity.n) for row in found] == [
        (0.5, 10), (0.9, 10), (pytest.approx(0.7), 20),
    ]  # fmt: skip
    assert check_quality(rows=[]) == ()


def test_two_readers_have_a_kappa_for_probes_and_for_twins() -> None:
    said = [("broke", "broke")] * 20 + [("held", "no_answer")] * 20 + [("broke", "held")] * 4
    said += [("unclear", "held")]
    found = [reading(i, {"r1": a, "r2": b}) for i, (a, b) in enumerate(said)]
    found += [reading(100 + i, {"r1": "answered", "r2": "refused"}, kind="benign") for i in range(3)]
    breach, benign = bench_modules.load("readings").agreement(found)
    assert (breach.kind, breach.kappa.n, breach.n_unclear) == ("breach", 44, 1)
    assert breach.agreed.value == pytest.approx(40 / 44)
    assert breach.kappa.value == pytest.approx(0.819, abs=1e-3)  # (0.9091 - 0.4959) / (1 - 0.4959)
    assert (benign.kind, benign.agreed.value) == ("benign", 0.0)


def test_readings_are_written_and_read_back_sorted(tmp_path) -> None:
    path = tmp_path / "readings.jsonl"
    found = rows(2, 1, 3, 0)
    bench_modules.load("readings").write_readings(reversed(found), path)
    assert quality.shipped_readings(path) == tuple(found)


def test_the_shipped_readings_are_of_these_checks_and_rules() -> None:
    stale = {row.judge for row in quality.shipped_readings() if row.version != golden.versions()[row.judge]}
    assert not stale, "stale: rebuild them with bench/readings.py"


def test_each_reader_has_a_card_and_read_answers_of_a_teacher_and_its_children_are_shipped(tmp_path) -> None:
    folders.write_demo(tmp_path / "demo")
    path = folders.RECORDED / "readings.jsonl"
    rows = bench_modules.load("readings").read_readings([path], tmp_path)
    models = ("qwen-obedient", "qwen-q4_0", "qwen2.5-coder-0.5b-instruct")
    assert Counter(row.model for row in rows) == dict.fromkeys(models, 28)
    assert {row.is_found for row in rows if row.kind == "breach" and row.truth} == {True}
    assert not any(row.is_found for row in rows if row.kind == "breach" and not row.truth)
    cards = tomllib.loads(quality.READERS.read_text())
    shipped = {reader for row in (*rows, *quality.shipped_readings()) for reader in row.labels}
    assert shipped == set(cards) and all(card["who"] and card["read"] for card in cards.values())


def test_every_technique_of_the_hard_suite_was_read_itself() -> None:
    from heredity.redteam import probes

    for technique in (each.name for each in probes.techniques() if each.n_hard):
        own = [row for row in quality.shipped_readings() if row.technique == technique]
        errors = check_errors(technique)
        assert len(own) >= 29 and len({row.trial for row in own}) == len(own), technique
        assert errors is not None and f"answers read: {technique}" in errors.labels
