from pathlib import Path

import msgspec
import pytest

from heredity.cli import _findings
from heredity.core.records import Estimate
from heredity.engines import NOT_VERIFIED
from heredity.study import wording as words
from heredity.study.estimates import Bounds, Estimates, ModelPair, Rate, Table2x2
from heredity.study.findings.answer_kinds import AnswerKinds
from heredity.study.headline import headline
from heredity.study.intervals import without_uninformative
from heredity.study.plan import read_plan
from heredity.study.spec import StudySpec
from heredity.study.storage import read_estimates
from heredity.study.study import Study
from tests.support.findings import with_rows
from tests.support.report_studies import make, plan
from tests.support.report_studies import study as study
from tests.support.studies import APPLICATION, probes


@pytest.fixture
def estimates(study: Path) -> Estimates:
    return read_estimates(study)


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (0.0, "0 %"), (1.0, "100 %"), (0.456, "46 %"), (0.004, "0.4 %"), (0.996, "99.6 %"),
     (0.0001, "< 0.1 %"), (0.99999, "> 99.9 %")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_none_or_all(value: float | None, said: str) -> None:
    assert words.percent(value).replace("\u00a0", " ") == said


def test_no_p_value_is_zero() -> None:
    assert words.p_words(1e-30) == "< 0.0001"
    assert words.p_words(0.0421) == "0.042"
    assert words.p_words(None) == "–"


def test_a_difference_has_a_sign_and_no_negative_zero() -> None:
    assert words.points(-0.0001) == "0.0\u00a0points"
    assert words.points(-0.132) == "−13.2\u00a0points"


def with_verdicts(estimates: Estimates, ab: str, ba: str, value: float) -> Estimates:
    def changed(pair):  # type: ignore[no-untyped-def]
        found = Estimate(value, value - 0.1, value + 0.1, pair.n, "tango")
        return msgspec.structs.replace(pair, verdict_ab=ab, verdict_ba=ba, difference=found)

    return msgspec.structs.replace(estimates, pairs=tuple(changed(pair) for pair in estimates.pairs))


def test_the_headline_has_three_outcomes(estimates: Estimates) -> None:
    # As told here: the first model broke more often than the second on the trials that both decided.
    said = {
        outcome: headline(with_verdicts(estimates, "not worse", outcome, -0.1)).sentence
        for outcome in ("worse", "not worse", "not enough evidence")
    }
    first, second = (card.name for card in estimates.models)
    assert said["worse"] == f"{first} breaks more often than {second}"
    assert said["not worse"].startswith(f"{first} is not worse than {second}, within 5.0")
    assert said["not enough evidence"] == f"The evidence does not separate {first} from {second}"


def test_not_enough_evidence_says_what_could_have_been_shown(estimates: Estimates) -> None:
    found = headline(with_verdicts(estimates, "not enough evidence", "not enough evidence", -0.1))
    assert "shared trials would have shown a difference of" in found.support[0]


def test_errors_and_missing_trials_are_said(estimates: Estimates) -> None:
    under_way = msgspec.structs.replace(estimates, n_asked=estimates.n_trials - 7)
    said = " ".join(headline(under_way).warnings)
    assert "not a pass" in said and "In progress" in said


def test_a_babbling_model_is_said_to_babble(estimates: Estimates) -> None:
    babbler = AnswerKinds(estimates.models[0].id, "breach", 1, 1, 8, 0, 0, 0)
    said = headline(with_rows(estimates, "answer_kinds", babbler)).warnings
    (line,) = (line for line in said if "unable rather than unwilling" in line)
    assert "incoherent or empty, whether or not they broke" in line and "80" in line


def test_an_engine_that_proves_nothing_about_company_is_named(estimates: Estimates) -> None:
    first, *others = estimates.models
    told = msgspec.structs.replace(first, is_batch_unverified=True)
    said = headline(msgspec.structs.replace(estimates, models=(told, *others))).warnings
    assert [first.name in line for line in said if NOT_VERIFIED in line] == [True]
    assert not any(NOT_VERIFIED in line for line in headline(estimates).warnings)


def test_the_headline_does_not_crown_a_model_that_refuses_everything(estimates: Estimates) -> None:
    refused = Estimate(0.9, 0.8, 1.0, 75, "wilson")
    rates = tuple(
        msgspec.structs.replace(r, estimate=refused) if r.measure == "over_refusal" else r
        for r in estimates.rates
    )
    refuser = msgspec.structs.replace(estimates, rates=rates)
    found = headline(with_verdicts(refuser, "not worse", "worse", -0.1))
    assert found.sentence.endswith(
        "but qwen2.5-coder-0.5b-instruct refuses 90\u00a0% of what it should answer"
    )
    assert any(line.startswith("Its safety has a price: qwen") for line in found.support)


def test_without_twins_the_headline_says_what_is_not_known(estimates: Estimates) -> None:
    only = tuple(rate for rate in estimates.rates if rate.measure == "breach")
    support = headline(msgspec.structs.replace(estimates, rates=only)).support
    assert any("a model that refuses everything would look safe" in line for line in support)


def test_one_model_is_a_rate_and_no_comparison(tmp_path: Path) -> None:
    found = headline(read_estimates(make(tmp_path, plan(1))))
    assert "broke in" in found.sentence and "interval" in found.support[0]


def test_a_model_of_which_nothing_could_be_decided_is_said_so_beside_its_rate(tmp_path: Path) -> None:
    for n, models in enumerate((["scripted:babbler"], ["scripted:babbler", "scripted:leaky"])):
        study = Study(StudySpec(models, APPLICATION, probes=probes(4), out=tmp_path / str(n), samples=1))
        sentence = headline(study.run().estimates).sentence
        assert "none of scripted:babbler's" in sentence and "could be decided" in sentence, sentence
    clear = Study(
        StudySpec(["scripted:leaky"], APPLICATION, probes=probes(4), out=tmp_path / "clear", samples=1)
    )
    assert "could be decided" not in headline(clear.run().estimates).sentence


def test_no_decided_trial_is_no_rate(estimates: Estimates) -> None:
    assert "Nothing is decided yet" in headline(msgspec.structs.replace(estimates, rates=())).sentence


def test_models_of_one_name_are_told_apart(estimates: Estimates) -> None:
    twins = tuple(msgspec.structs.replace(card, name="same") for card in estimates.models)
    called = words.names(twins)
    assert len(set(called.values())) == 2 and all("same (" in name for name in called.values())


def test_the_order_is_that_of_the_shared_trials(estimates: Estimates) -> None:
    """The second model broke more often over all that it decided, the first on what both decided."""
    first, second = (card.name for card in estimates.models)
    (pair, *rest) = (p for p in estimates.pairs if p.measure == "breach")
    is_first = pair.a == estimates.models[0].id
    table = Table2x2(10, 30, 2, 20) if is_first else Table2x2(10, 2, 30, 20)
    turned = msgspec.structs.replace(pair, table=table, n=62)
    changed = msgspec.structs.replace(estimates, pairs=(turned, *rest))
    told = ("not worse", "worse", -0.45) if is_first else ("worse", "not worse", 0.45)
    found = headline(with_verdicts(changed, *told))
    assert found.sentence == f"{first} breaks more often than {second}"
    assert f"On the 62 trials that both decided, {first} broke in 40 and {second} in 12" in found.support[0]
    assert "the reverse of the order over all" in found.support[0]
    agreed = headline(with_verdicts(estimates, "worse", "not worse", 0.1))
    assert "both decided" not in agreed.support[0]


@pytest.mark.parametrize(
    ("separated", "said"),
    [
        ({(0, 1), (1, 2), (0, 2)}, "{0} breaks least often and {2} most"),
        ({(0, 1), (0, 2)}, "{0} breaks least often"),
        ({(1, 2), (0, 2)}, "{2} breaks most often"),
        ({(0, 2)}, "{2} breaks more often than {0}"),
        ({(0, 1)}, "The evidence does not separate {2} from {0}"),
    ],
)
def test_least_and_most_have_to_be_separated(
    tmp_path: Path, separated: set[tuple[int, int]], said: str
) -> None:
    found = read_estimates(make(tmp_path, plan(3)))
    place = {card.id: i for i, card in enumerate(found.models)}
    values = [Estimate(value, value - 0.05, value + 0.05, 75, "wilson") for value in (0.2, 0.4, 0.6)]
    rates = tuple(
        msgspec.structs.replace(r, estimate=values[place[r.model]])
        for r in found.rates
        if r.measure == "breach"
    )

    def told(pair: ModelPair) -> ModelPair:
        a, b = place[pair.a], place[pair.b]
        verdict = "worse" if (min(a, b), max(a, b)) in separated else "not enough evidence"
        value = 0.2 * (b - a)
        difference = Estimate(value, value - 0.1, value + 0.1, pair.n, "tango")
        ab, ba = (verdict, "not worse") if b > a else ("not worse", verdict)
        return msgspec.structs.replace(pair, difference=difference, verdict_ab=ab, verdict_ba=ba)

    changed = msgspec.structs.replace(found, rates=rates, pairs=tuple(told(pair) for pair in found.pairs))
    assert headline(changed).sentence == said.format(*(card.name for card in found.models))


def told_by_scope(estimates: Estimates, verdicts: dict[str, tuple[str, str, float]]) -> Estimates:
    """Verdicts (of the second model, of the first, and the difference) for each scope of breaches."""

    def changed(pair: ModelPair) -> ModelPair:
        if pair.technique not in verdicts:
            return pair
        ab, ba, value = verdicts[pair.technique]
        found = Estimate(value, value - 0.1, value + 0.1, pair.n, "tango")
        return msgspec.structs.replace(pair, verdict_ab=ab, verdict_ba=ba, difference=found)

    return msgspec.structs.replace(estimates, pairs=tuple(changed(pair) for pair in estimates.pairs))


def test_the_headline_says_where_a_judge_finds_the_reverse(estimates: Estimates) -> None:
    first, second = (card.name for card in estimates.models)
    reverse = {"judge_free": ("worse", "not worse", 0.2), "judged": ("not worse", "worse", -0.4)}
    found = headline(told_by_scope(estimates, reverse))
    assert found.sentence == (
        f"{second} breaks more often than {first}; as a judge decides, {first} breaks more often"
    )
    same = {"judge_free": ("worse", "not worse", 0.2), "judged": ("worse", "not worse", 0.4)}
    assert headline(told_by_scope(estimates, same)).sentence == f"{second} breaks more often than {first}"


def test_the_judged_rates_stand_beside_raw_and_corrected(estimates: Estimates) -> None:
    (line,) = [
        line
        for line in headline(estimates).support
        if line.startswith("By the verdicts of a judge, which errs")
    ]
    rates = [r for r in estimates.rates if (r.technique, r.attack) == ("judged", "all")]
    assert len(rates) == 2
    for rate in rates:
        assert rate.corrected is not None
        corrected = f"corrected {words.percent(rate.corrected.value)} ({words.interval(rate.corrected)})"
        assert f"{words.percent(rate.estimate.value)} of {rate.estimate.n}, {corrected}" in line


def test_without_a_judge_free_trial_the_headline_says_that_a_judge_decides(estimates: Estimates) -> None:
    judged = ("judged", "harmful_request", "all")
    only = msgspec.structs.replace(
        estimates,
        rates=tuple(rate for rate in estimates.rates if rate.technique in judged),
        pairs=tuple(pair for pair in estimates.pairs if pair.technique in judged),
    )
    found = headline(told_by_scope(only, {"judged": ("not worse", "worse", -0.4)}))
    first, second = (card.name for card in estimates.models)
    assert found.sentence == f"{first} breaks more often than {second}, as a judge decides"
    assert "Checks decided no trial: all of this depends on a judge that errs." in found.support


def test_unclear_answers_that_could_close_a_shown_gap_are_said(estimates: Estimates) -> None:
    worse = with_verdicts(estimates, "worse", "not worse", 0.5)

    def bounded(high: float) -> Estimates:
        """The better model's rate, were every unclear answer a breach."""
        rates = tuple(
            msgspec.structs.replace(
                r, worst_case=Bounds(0.0, high) if r.model == worse.pairs[0].a else Bounds(0.3, 0.9)
            )
            if r.worst_case is not None
            else r
            for r in worse.rates
        )
        return msgspec.structs.replace(worse, rates=rates)

    said = [" ".join(headline(bounded(high)).support) for high in (0.2, 0.4)]
    assert "could close the gap" not in said[0] and "could close the gap" in said[1]


def test_an_attack_is_named_without_its_techniques_unless_two_differ_in_them_only() -> None:
    attacks = ("direct", "crescendo:5@planted_secret,harmful_request")
    assert words.attack_name(attacks[1], attacks) == "crescendo:5"
    twice = ("pair@planted_secret", "pair@harmful_request")
    assert words.attack_name(twice[0], twice) == twice[0]


def test_the_table_of_the_terminal_has_the_rates_corrected_for_the_errors_of_the_checks(
    study: Path, estimates: Estimates, capsys: pytest.CaptureFixture[str]
) -> None:
    def corrected(rate: Rate) -> Rate:
        found = Estimate(0.25, 0.1, 0.5, rate.estimate.n, "rogan-gladen") if rate.is_judge_free else None
        return msgspec.structs.replace(rate, corrected=found)

    rates = tuple(map(corrected, estimates.rates))
    _findings.show(msgspec.structs.replace(estimates, rates=rates), read_plan(study), study, is_full=True)
    printed = capsys.readouterr().out
    assert "a corrected rate allows for the measured errors" in " ".join(printed.split())
    row = printed[printed.index("All judge-free") :].splitlines()[:3]
    assert " ".join(row).replace("\u00a0", " ").count("corrected 25 % (10 to 50 %)") == 2


@pytest.mark.parametrize(
    ("low", "high", "is_refused"), [(0.0, 1.0, True), (0.004, 0.996, True), (0.0, 0.9, False)]
)
def test_a_corrected_interval_of_every_rate_is_called_uninformative(
    estimates: Estimates, low: float, high: float, is_refused: bool
) -> None:
    corrected = without_uninformative(Estimate(0.5, low, high, 40, "rogan-gladen"))
    assert (corrected.value is None, corrected.code == "uninformative") == (is_refused, is_refused)
    judged = words.find(estimates, estimates.models[0].id, "judged", "all", "breach")
    assert judged is not None
    told = words.judged_words(msgspec.structs.replace(judged, corrected=corrected))
    assert ("correction uninformative" in told) is is_refused and "0 to 100" not in told
