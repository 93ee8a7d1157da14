"""Attacks in a study: what a plan stores, what reaches the engine, what is skipped and said."""

from __future__ import annotations

from pathlib import Path

from heredity.application.conversation import ApplicationSession
from heredity.core.errors import UsageError
from heredity.core.records import Request
from heredity.lineage import store as lineage
from heredity.redteam import attacks
from heredity.study.plan import Plan
from heredity.study.resolve import resolve_plan
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.conversations import APPLICATION, BY_ID, trial
from tests.support.errors import raises
from tests.support.studies import Recorder, drop_circumstances


def resolve(
    *specs: str, probe_names: tuple[str, ...] = ("planted_secret/plain-01",), samples: int = 1
) -> Plan:
    models = [lineage.scripted("scripted:mixed").record]
    return resolve_plan(StudySpec(models, APPLICATION, probes=probe_names, attacks=specs, samples=samples))


def requests(spec: str, samples: int = 1) -> list[Request]:
    """What the engine is asked under one attack, trial by trial."""
    asked: list[Request] = []
    made = resolve(spec, samples=samples)
    how = attacks.context_for(APPLICATION)
    for sample in range(samples):
        turns = attacks.load(spec)(made.probes[0], trial(sample, how=how))
        asked.append(next(ApplicationSession(APPLICATION).converse(turns, made.probes[0], seed=5)))
    return asked


def test_a_plan_stores_specs_with_every_variant_written_out() -> None:
    assert resolve("direct", "encoding", "crescendo+suffix").attacks == (
        "direct",
        "encoding:base64",
        "crescendo:5+suffix:affirm",
    )


def test_one_attack_under_two_spellings_is_one_too_many() -> None:
    with raises(UsageError, "name-twice", mentions=["encoding:base64", "2"]):
        resolve("encoding", "encoding:base64")


def test_all_attacks_of_a_study_are_laid_over_the_same_probes() -> None:
    names = ("planted_secret/plain-01", "harmful_request/spy-01")
    assert len(resolve("direct", probe_names=names).probes) == 4
    made = resolve("direct", "language:fr", probe_names=names)
    assert [p.id for p in made.probes] == ["planted_secret/plain-01", "planted_secret/plain-01~benign"]
    assert [(s.probe, "translation of this probe into 'fr'" in s.reason) for s in made.skipped] == [
        ("harmful_request/spy-01", True),
        ("harmful_request/spy-01~benign", True),
    ]
    with raises(UsageError, "bad-usage", mentions=["fr"]):
        resolve("language:fr", probe_names=("harmful_request/spy-01",))


def test_each_sample_of_the_sweep_is_drawn_in_its_own_way() -> None:
    drawn = [r.decoding for r in requests("decoding", samples=6)]
    assert len(set(drawn)) == 6
    assert requests("direct")[0].decoding == APPLICATION.decoding


def test_demonstrations_stand_before_the_question_and_behind_the_application() -> None:
    (request,) = requests("many_shot:3")
    own = APPLICATION.messages()
    assert request.messages[: len(own)] == own
    assert request.n_shared == len(own)
    assert [m.role for m in request.messages[len(own) :]] == ["user", "assistant"] * 3 + ["user"]
    assert request.messages[-1].content == BY_ID["planted_secret/plain-01"].turns[0]


def test_a_study_asks_them_all_and_estimates_the_same_again(tmp_path: Path) -> None:
    specs = ("direct", "prefill+roleplay", "crescendo:3+encoding:rot13", "best_of_n", "language:zh")
    names = ("planted_secret/plain-01", "planted_secret/steps-01", "direct_injection/pasted-01")
    engines = []

    def run(folder: Path) -> bytes:
        engines.append(Recorder("mixed"))
        study = Study(
            StudySpec(["scripted:mixed"], APPLICATION, probes=names, attacks=specs, samples=2, out=folder),
            engine_loader=lambda _: engines[-1],
        )
        result = study.run()
        assert result.estimates.n_asked == result.estimates.n_trials == 6 * 5 * 2
        assert result.rate("scripted:mixed", attack="best_of_n") == result.rate(
            "scripted:mixed", attack="best_of_n:0.4"
        )
        return drop_circumstances(folder)

    assert run(tmp_path / "one") == run(tmp_path / "two")
    assert sorted(engines[0].prompts.items()) == sorted(engines[1].prompts.items())
