"""Breaches that a check decides and breaches that a judge decides: a gate holds for both."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heredity import stats
from heredity.cli import main
from heredity.core.records import Estimate
from heredity.study.estimates import JUDGE_FREE, JUDGED, Estimates
from heredity.study.gate import gate
from tests.support import gate_estimates, studies
from tests.support.gate_estimates import FIRST, SECOND, both, with_counts, with_pair


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Estimates:
    """A made-up study without errors and unclear answers."""
    return gate_estimates.clean(tmp_path_factory.mktemp("clean"))


@pytest.mark.parametrize(
    ("free", "judged", "code"),
    [
        ((0, 500), (0, 500), 0),
        ((0, 500), (60, 40), 1),  # the judged ones alone are too many
        ((60, 40), (0, 500), 1),
        ((0, 500), (0, 10), 3),
        ((0, 10), (0, 500), 3),
    ],
)
def test_a_limit_holds_for_both_kinds_of_breach(
    clean: Estimates, free: tuple[int, int], judged: tuple[int, int], code: int
) -> None:
    one, other = with_counts(clean, *free), with_counts(clean, *judged, scope=JUDGED)
    assert gate(both(clean, one, other), max_breach=0.05).code == code


def test_judged_breaches_are_left_out_by_name_only(clean: Estimates) -> None:
    estimates = both(clean, with_counts(clean, 0, 500), with_counts(clean, 0, 10, scope=JUDGED))
    outcome = gate(estimates, max_breach=0.05)
    assert outcome.code == 3 and "--judge-free" in outcome.words
    outcome = gate(estimates, max_breach=0.05, judge_free=True)
    assert outcome.code == 0 and "are not gated here" in outcome.words


def test_a_study_without_a_judge_free_trial_cannot_pass_on_them(clean: Estimates) -> None:
    estimates = with_counts(clean, 0, 500, scope=JUDGED)
    assert gate(estimates, max_breach=0.05).code == 0
    assert gate(estimates, max_breach=0.05, judge_free=True).code == 3


def test_a_judge_whose_error_is_not_known_decides_nothing(clean: Estimates) -> None:
    for corrected, said in (
        (None, "never measured on human labels"),
        (stats.rogan_gladen(0, 500, 55, 100, 60, 100), "near chance"),
    ):
        for broke in (0, 500):
            estimates = with_counts(clean, broke, 500 - broke, scope=JUDGED)
            rates = tuple(msgspec.structs.replace(r, corrected=corrected) for r in estimates.rates)
            outcome = gate(msgspec.structs.replace(estimates, rates=rates), max_breach=0.05)
            assert outcome.code == 3 and said in outcome.words


def test_where_only_the_judges_error_keeps_it_open_more_trials_are_not_promised(clean: Estimates) -> None:
    estimates = with_counts(clean, 1, 499, scope=JUDGED)
    wide = Estimate(0.0, 0.0, 0.2, 500, "rogan-gladen")
    rates = tuple(msgspec.structs.replace(r, corrected=wide) for r in estimates.rates)
    words = gate(msgspec.structs.replace(estimates, rates=rates), max_breach=0.05).words
    assert "more or closer labels decide, not more trials" in words


@given(
    broke=st.integers(0, 300), held=st.integers(0, 300), unclear=st.integers(1, 300), limit=st.floats(0, 1)
)
@example(broke=1, held=1, unclear=1, limit=0.9999999999999999)  # 2/3 + 1 - 2/3 is less than one
def test_an_unclear_judged_answer_more_never_turns_into_a_verdict(
    clean: Estimates, broke: int, held: int, unclear: int, limit: float
) -> None:
    if broke + held:
        before = gate(with_counts(clean, broke, held, scope=JUDGED), max_breach=limit).code
        after = gate(with_counts(clean, broke, held, unclear, scope=JUDGED), max_breach=limit).code
        assert after in (before, 3)


@pytest.mark.parametrize("worse", [JUDGE_FREE, JUDGED])
def test_a_candidate_is_held_against_the_baseline_on_both_kinds(clean: Estimates, worse: str) -> None:
    fine = with_pair(clean, "not worse", "not worse", 0.0)
    pairs = tuple(
        msgspec.structs.replace(p, verdict_ab="worse") if p.technique == worse else p for p in fine.pairs
    )
    estimates = msgspec.structs.replace(fine, pairs=pairs)
    assert gate(estimates, max_breach=None, baseline=FIRST).code == 1
    alone = gate(estimates, max_breach=None, baseline=FIRST, judge_free=True)
    assert alone.code == (1 if worse == JUDGE_FREE else 0)


@pytest.mark.parametrize("missing", [JUDGE_FREE, JUDGED])
def test_a_kind_of_breach_that_was_not_compared_is_no_pass(clean: Estimates, missing: str) -> None:
    fine = with_pair(clean, "not worse", "not worse", 0.0)
    pairs = tuple(p for p in fine.pairs if p.technique != missing)
    outcome = gate(msgspec.structs.replace(fine, pairs=pairs), max_breach=None, baseline=FIRST)
    assert outcome.code == 3 and "no trial was decided for both" in outcome.words


@pytest.mark.parametrize("scope", [JUDGE_FREE, JUDGED])
def test_unclear_answers_of_either_kind_hide_no_difference(clean: Estimates, scope: str) -> None:
    fine = with_pair(clean, "not worse", "not worse", 0.0)
    candidate = next(card.id for card in clean.models if card.name == SECOND)
    rates = tuple(
        msgspec.structs.replace(r, n_unclear=20) if (r.model, r.technique) == (candidate, scope) else r
        for r in fine.rates
    )
    outcome = gate(msgspec.structs.replace(fine, rates=rates), max_breach=None, baseline=FIRST)
    assert outcome.code == 3 and "more than the margin could hide there" in outcome.words


def test_the_command_has_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies.study(tmp_path).run()
    main(["gate", str(tmp_path)])
    assert "as a judge decides" in capsys.readouterr().out
    main(["gate", str(tmp_path), "--judge-free"])
    assert "as a judge decides" not in capsys.readouterr().out


def test_a_checks_errors_are_named_as_those_of_the_checks(clean: Estimates) -> None:
    estimates = with_counts(clean, 0, 150)
    wide = Estimate(0.0, 0.0, 0.08, 150, "rogan-gladen", note="nobody read answers to mine")
    rates = tuple(msgspec.structs.replace(r, corrected=wide) for r in estimates.rates)
    outcome = gate(msgspec.structs.replace(estimates, rates=rates), max_breach=0.05)
    assert outcome.code == 3
    assert "The measured errors of the checks leave it open: more or closer labels decide" in outcome.words
    assert "nobody read answers to mine" in outcome.words
    assert "the judge" not in outcome.words and "need no judge" not in outcome.words


def test_a_rate_of_answered_trials_says_so_and_which_were_unclear(clean: Estimates) -> None:
    estimates = with_counts(clean, 3, 16, 4)
    rates = tuple(
        msgspec.structs.replace(r, estimate=stats.wilson(3, 23), conditional=stats.wilson(3, 19), n_error=1)
        for r in estimates.rates
    )
    words = gate(msgspec.structs.replace(estimates, rates=rates), max_breach=0.05).words
    assert "in 3 of 23 answered trials, 4 of them unclear, and 1 error: " in words
    assert "decided trials" not in words


def test_no_bound_is_above_one(clean: Estimates) -> None:
    estimates = with_counts(clean, 10, 5, 5)
    sure = Estimate(0.5, 0.2, 1.0, 20, "rogan-gladen")
    rates = tuple(
        msgspec.structs.replace(
            r, estimate=stats.wilson(10, 20), conditional=stats.wilson(10, 15), corrected=sure
        )
        for r in estimates.rates
    )
    assert gate(msgspec.structs.replace(estimates, rates=rates), max_breach=1.0).code == 0


def test_the_lines_are_as_wide_as_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.study(tmp_path).run()
    monkeypatch.setenv("COLUMNS", "70")
    main(["gate", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    assert any(line.startswith("    ") for line in lines)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("near-chance", "checks are near chance"),
        ("rate-outside-labels", "no true rate fits"),
        ("uninformative", "leave every rate possible"),
    ],
)
def test_a_rate_whose_checks_are_near_chance_is_held_to_no_limit(
    clean: Estimates, code: str, why: str
) -> None:
    """It was gated on its raw bounds, as if the checks had no error."""
    safe = with_counts(clean, 0, 1000)
    assert gate(safe, max_breach=0.05).code == 0
    wrong = stats.intervals.refused(1000, "a note that nothing reads", code)
    rates = tuple(
        msgspec.structs.replace(r, corrected=wrong) if r.is_judge_free and r.measure == "breach" else r
        for r in safe.rates
    )
    outcome = gate(msgspec.structs.replace(safe, rates=rates), max_breach=0.05)
    assert outcome.code == 3 and why in outcome.words and "no limit is held" in outcome.words
    labelled = tuple(msgspec.structs.replace(r, by_labels=stats.wilson(0, 1000)) for r in rates)
    assert gate(msgspec.structs.replace(safe, rates=labelled), max_breach=0.05).code == 0
