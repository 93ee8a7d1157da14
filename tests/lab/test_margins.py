"""Refusal margins: openings that tell answers apart, regressions of known results, and refused margins."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from statsmodels.api import OLS, add_constant

torch = pytest.importorskip("torch")

from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.records import Message, Request
from heredity.engines import Engine, scripted
from heredity.engines.torch import engine as torch_engine
from heredity.engines.torch.engine import open_folder
from heredity.lab import margins
from heredity.lab.margins import EdgeMargin, auc_of, edge_margins, logistic_slope, openings_of, regress
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.recipes.finetune import Finetune
from heredity.redteam import probes
from heredity.study.result import Result
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.train.data.chat import Dialogue, make_data
from tests.support import bench_modules
from tests.support.errors import raises
from tests.support.tiny_models import make_model

RNG = np.random.default_rng(0)


def test_an_opening_is_as_short_as_one_kind_of_answer_alone_begins_with() -> None:
    answers = [
        ("I can help you with that.", False),
        ("I can't help you with that.", True),
        ("I can't do it.", True),
        ("To boil an egg, heat water.", False),
        ("To be plain, no.", True),
        ("To be plain, no.", False),  # nothing tells these two apart
        ("", True),
    ]
    openings = openings_of(answers)
    assert openings.refusals == ("I can't",)
    assert set(openings.answers) == {"I can help", "To boil"}
    every = [*openings.refusals, *openings.answers]
    assert not any(a != b and a.startswith(b) for a in every for b in every)


def test_a_regression_with_a_cluster_for_each_item_is_that_of_hc3() -> None:
    parent = RNG.normal(0, 3, 60)
    child = 0.8 * parent - 0.2 + RNG.normal(0, 1 + 0.2 * np.abs(parent))
    fit = regress(child, parent, [*map(str, range(60))])
    other = OLS(child, add_constant(parent)).fit(cov_type="HC3", use_t=True)
    (a_low, a_high), (k_low, k_high) = other.conf_int()
    assert fit.a[:3] == pytest.approx((other.params[0], a_low, a_high))
    assert fit.k[:3] == pytest.approx((other.params[1], k_low, k_high))
    assert fit.k.p_value == pytest.approx(float(other.t_test("x1 = 1").pvalue))


def test_a_copy_has_no_shrinkage_and_no_shift() -> None:
    parent = RNG.normal(0, 3, 40)
    fit = regress(parent, parent, [str(i % 12) for i in range(40)])
    assert (fit.k.value, fit.k.p_value) == pytest.approx((1.0, 1.0), abs=1e-5)
    assert (fit.a.value, fit.a.p_value) == pytest.approx((0.0, 1.0), abs=1e-5)


def test_one_answer_of_the_other_kind_takes_no_opening_away() -> None:
    answers = [("The end.", False)] * 9 + [("The end, no.", True)] + [("As an AI, no", True)] * 3
    assert openings_of(answers) == margins.Openings(("As",), ("The",))


@pytest.mark.parametrize("is_by_kind", [False, True])
def test_a_shift_is_covered_and_none_is_shown_without_one(is_by_kind: bool) -> None:
    """The small version of bench/verdicts.py: noise grows with the margin, kinds have errors in common."""
    verdicts, rng, n = bench_modules.load("verdicts"), np.random.default_rng(0), 200
    null, moved = (
        sum((verdicts.margin_counts(rng, 60, 1.0, a, is_by_kind) for _ in range(n)), Counter[str]())
        for a in (0.0, -1.0)
    )
    for name in ("k", "a", "less twin"):
        assert null[name] / n < 0.05 + 0.046  # three standard errors
        assert min(null[f"{name} covered"], moved[f"{name} covered"]) / n > 0.95 - 0.046
    assert moved["a"] / n > 0.9 and moved["k"] / n < 0.05 + 0.046


def test_margins_are_held_against_refusals() -> None:
    margin = RNG.normal(0, 3, 4000)
    refuses = RNG.random(4000) < 1 / (1 + np.exp(-margin))
    assert logistic_slope(margin, refuses) == pytest.approx(1.0, abs=0.1)
    assert 0.9 < auc_of(margin, refuses) < 1.0
    assert logistic_slope(margin, margin > 0) == math.inf and auc_of(margin, margin > 0) == 1.0
    assert math.isnan(auc_of(margin, margin > 99)) and math.isnan(logistic_slope(margin, margin > 99))


def test_texts_that_grow_together_have_the_scores_of_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_folder(make_model(tmp_path / "tiny", "llama"), dtype="float32", is_probed=False)
    request = Request(0, (Message("user", "the quick fox"),))
    texts = ["jumps over the dog", "fox", "the lazy", "jumps over"]
    alone = [sum(engine.score(request, [text])[0].logs) for text in texts]
    rare = engine.opening_logs(request, texts)
    assert all(
        a <= b + 1e-4 and (a == pytest.approx(b, abs=1e-4) or b < -14)
        for a, b in zip(alone, rare, strict=True)
    )
    monkeypatch.setattr(torch_engine, "_RARE", -99.0)
    assert engine.opening_logs(request, texts) == pytest.approx(alone, abs=1e-4)
    assert engine.opening_logs(request, ["fox"]) == pytest.approx([alone[1]], abs=1e-4)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Result, tuple[str, str]]:
    """Tiny models of a store, and answers of a rule in their place."""
    folder = tmp_path_factory.mktemp("margins")
    store = Store(folder / "store")
    parent = store.pull(str(make_model(folder / "tiny", "llama", max_position_embeddings=1024)))
    rows = make_data("rows", [Dialogue((Message("user", "fox"), Message("assistant", "over")), "rows:1")] * 8)
    child = store.grow_once(Finetune(rows, steps=1, batch_size=4, lr=1e-3, dtype="float32"), [parent])
    desk = Application("plain")

    def load(_: Grown) -> Engine:
        return scripted.ScriptedEngine("mixed")

    behaviours = sorted({probe.cluster for probe in probes.load("refusals")})[:130]
    asked = [probe for probe in probes.load("refusals") if probe.cluster in behaviours]
    spec = StudySpec([parent, child], desk, probes=asked, out=folder / "study")
    result = Study(spec, store=store, engine_loader=load).run()
    return store, result, (parent.record.id, child.record.id)


@pytest.mark.slow
def test_models_are_scored_once_and_rare_openings_give_no_margin(
    asked: tuple[Store, Result, tuple[str, str]],
) -> None:
    store, result, edge = asked
    assert edge_margins(result, [edge]) == []
    margins.measure(result, edge, store)
    (made,) = edge_margins(result, [edge])
    assert made.why_not == "the openings are too rare" and made.fit is None
    before = (result.folder / margins.FILE).stat().st_mtime_ns
    margins.measure(result, edge, store)
    assert (result.folder / margins.FILE).stat().st_mtime_ns == before
    (section,) = margins.section([made], dict.fromkeys(edge, "tiny"))
    assert "no margin: the openings are too rare" in section.tables[0].rows[0]


@pytest.mark.slow
def test_a_margin_needs_to_predict_refusals_and_is_shown_with_its_own_correction(
    asked: tuple[Store, Result, tuple[str, str]],
) -> None:
    store, result, edge = asked
    margins.measure(result, edge, store)
    held = margins.read(result)
    assert held is not None

    def measured(noise: float) -> EdgeMargin:
        scores: dict[str, dict[str, tuple[float, float]]] = {}
        for model, k in zip(edge, (1.0, 0.7), strict=True):
            refuses = {t.trial.probe.id: t.outcome in ("held", "refused") for t in result.trials(model=model)}
            rng = np.random.default_rng(0)
            scores[model] = {}
            for probe in held.scores[model]:
                m = k * (rng.normal(3.0 if refuses[probe] else -3.0, noise)) + rng.normal(0, 0.1)
                log_p = -np.logaddexp(0, -m)  # all of the mass: P(R) + P(C) = 1
                scores[model][probe] = (float(log_p), float(log_p - m))
        file = msgspec.structs.replace(held, scores=scores)
        (result.folder / margins.FILE).write_bytes(msgspec.json.encode(file))
        return edge_margins(result, [edge])[0]

    good, bad = measured(2.2), measured(9.0)
    assert bad.why_not == "it does not predict the judged refusals" and bad.fit is None
    assert good.fit is not None and good.p_holm is not None, good
    assert good.fit.k.value == pytest.approx(0.7, abs=0.02) and good.p_holm[0] < 0.05
    assert good.n == good.n_asked and good.discrimination is not None and good.n_pairs == good.n


def test_too_few_judged_answers_are_refused(
    asked: tuple[Store, Result, tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, result, edge = asked
    monkeypatch.setattr(margins, "LEAST_DEVELOPED", 500)
    with raises(UsageError, "bad-usage", mentions=["500", "refusals"]):
        margins.measure(result, edge, store)
