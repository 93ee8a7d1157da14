"""Two runs: the counts of the same trials, unlike applications, and names that are hostile."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import Outcome
from heredity.redteam.checks import is_judged
from heredity.stats import compare
from heredity.study.estimates import ALL
from heredity.study.plan import Analysis, Plan, write_plan
from heredity.study.storage import read_estimates, verdict_rows
from heredity.study.wording import find
from heredity.view.pairs import WHICH, TwoRuns
from heredity.view.places import OpenStudy, StudyPlace
from heredity.view.site import Site
from tests.support import report_studies, small_study
from tests.view.test_pages import HOSTILE, Tags


def place_of(root: Path, **runs: tuple[Plan, dict[int, Outcome | None]]) -> StudyPlace:
    """Studies without estimates, by name: their plan and the outcomes that are not held or answered."""
    for name, (plan, outcomes) in runs.items():
        write_plan(root / "runs" / name, plan)
        small_study.write_rows(root / "runs" / name, plan, outcomes)
    return StudyPlace(root / "runs", root / "store")


def opened(place: StudyPlace, name: str) -> OpenStudy:
    study = place.open(next(found.key for found in place.studies() if found.name == name))
    study.refresh()
    return study


def two(place: StudyPlace, first: str = "first", second: str = "second") -> TwoRuns:
    return TwoRuns(opened(place, first), opened(place, second))


def page(held: StudyPlace, runs: TwoRuns, path: str = "/compare", **query: str) -> str:
    return Site(held).render(path, {"a": runs.first.key, "b": runs.second.key, **query})


def at(plan: Plan, model: str, probe: str, attack: int, sample: int) -> int:
    m, p = [each.name for each in plan.models].index(model), [each.id for each in plan.probes].index(probe)
    return int(np.ravel_multi_index((m, attack, p, sample), plan.shape))


@pytest.fixture
def small(tmp_path: Path) -> StudyPlace:
    """Two runs without estimates; the second has models and probes in another order, and one sample."""
    plan = small_study.small_plan()
    other = msgspec.structs.replace(plan, models=plan.models[::-1], probes=plan.probes[::-1], samples=1)
    secret = "secret/one"
    first: dict[int, Outcome | None] = {
        at(plan, "a", secret, 0, 0): "broke",
        at(plan, "a", secret, 0, 1): "broke",  # a sample that the second run did not ask
        at(plan, "b", secret, 0, 0): "broke",
        at(plan, "b", secret, 1, 0): None,  # an error counts in no rate
        at(plan, "a", "harm/one", 0, 0): "broke",  # of the other scope
    }
    second: dict[int, Outcome | None] = {
        at(other, "a", secret, 1, 0): "broke", at(other, "b", secret, 0, 0): "broke",
    }  # fmt: skip
    return place_of(tmp_path, first=(plan, first), second=(other, second))


def test_the_same_trials_are_counted_whatever_their_order(small: StudyPlace) -> None:
    runs = two(small)
    found = {runs.first.names[m.a]: runs.shared(m, runs.scope) for m in runs.models}
    assert {name: [each.n(w) for w in WHICH] for name, each in found.items()} == {
        "a": [1, 1, 0, 0], "b": [0, 0, 1, 0],
    }  # fmt: skip
    harm = runs.shared(runs.models[0], "harm")
    assert [harm.n(w) for w in WHICH] == [1, 0, 0, 1]
    assert all(m.is_same for m in runs.models)
    for model in runs.models:
        for place in np.flatnonzero(found[runs.first.names[model.a]].sorts):
            one, other = runs.indices(model, int(place))
            mine, theirs = runs.first.grid.trial(one), runs.second.grid.trial(other)
            assert mine.id == theirs.id


def test_each_count_opens_its_trials_side_by_side(small: StudyPlace) -> None:
    runs = two(small)
    text = page(small, runs)
    links = [a["href"] or "" for tag, a in Tags(text).found if tag == "a" and "/trial" in (a["href"] or "")]
    assert any("model=a&which=only-a" in link for link in links)
    assert not any("model=a&which=both" in link for link in links)  # a count of none leads nowhere
    shown = page(small, runs, "/compare/trial", model="a", which="only-b")
    index = at(runs.second.plan, "a", "secret/one", 1, 0)
    assert f"reply {index}" in shown and "under prefill" in shown and "1 of 1" in shown
    for query in ({"which": "both"}, {"which": "only-b", "place": "3"}):
        with pytest.raises(UsageError):
            page(small, runs, "/compare/trial", model="a", **query)
    with pytest.raises(UnknownName):
        page(small, runs, "/compare/trial", model="a", which="most")


def test_runs_without_estimates_have_counts_and_no_interval(small: StudyPlace) -> None:
    runs = two(small)
    found = runs.compared(runs.models[0])
    assert found.pair is None and "without current estimates" in found.why_not
    assert "no interval: a run without current estimates" in page(small, runs)
    assert {each.what: (each.first, each.second) for each in runs.differences()} == {"samples": ("2", "1")}


def test_another_seed_leaves_direct_attempts(tmp_path: Path) -> None:
    plan = small_study.small_plan()
    runs = two(place_of(tmp_path, first=(plan, {}), second=(msgspec.structs.replace(plan, seed=1), {})))
    assert runs.shared(runs.models[0], runs.scope).n_all == plan.samples


def test_runs_in_other_applications_are_not_comparable_and_say_so_first(tmp_path: Path) -> None:
    plan = small_study.small_plan()
    other = msgspec.structs.replace(plan.application, system="You never help.")
    place = place_of(
        tmp_path, first=(plan, {}), second=(msgspec.structs.replace(plan, application=other), {})
    )
    runs = two(place)
    assert runs.differences()[0].what == "application"
    found = runs.compared(runs.models[0])
    assert found.main.shared.n_all == 0 and found.pair is None and found.main.first is not None
    text = page(place, runs)
    assert "their applications differ (system)" in text
    assert text.index("not comparable") < text.index("What differs") < text.index("no interval")
    assert "<b>0</b>" not in text and "in neither" not in text  # nothing is counted where nothing is compared


def test_rates_that_count_other_trials_are_not_compared(tmp_path: Path) -> None:
    plan = small_study.small_plan()
    other = msgspec.structs.replace(plan, analysis=Analysis())
    runs = two(place_of(tmp_path, first=(plan, {}), second=(other, {})))
    assert "endpoint" in runs.not_comparable and runs.compared(runs.models[0]).main.shared.n_all == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyPlace:
    """Two finished runs: the second in another order, with a probe less and one in other words."""
    root = tmp_path_factory.mktemp("compare")
    plan = report_studies.plan(n_probes=6)
    *kept, last = reversed(plan.probes[:-1])
    probes = (*kept, msgspec.structs.replace(last, turns=("Something else?",)))
    report_studies.make(root / "runs" / "first", plan)
    report_studies.make(root / "runs" / "second", msgspec.structs.replace(plan, probes=probes))
    return StudyPlace(root / "runs", root / "store")


def test_the_difference_is_that_of_the_same_trials(finished: StudyPlace) -> None:
    runs = two(finished)
    for model in runs.models:
        found = runs.compared(model)
        broke: list[dict[str, bool]] = []
        for study in (runs.first, runs.second):
            own = [row for row in verdict_rows(study.folder, study.grid) if row.outcome in ("held", "broke")]
            trials = [(study.grid.trial(row.index), row.outcome == "broke") for row in own]
            wanted = [(t, b) for t, b in trials if t.model.id == runs.first.plan.models[model.a].id]
            broke.append({t.probe.id: b for t, b in wanted if not is_judged(t.probe.check)})
        same = [each for each in broke[0] if each in broke[1] and each != runs.first.plan.probes[0].id]
        a, b = ([side[each] for each in same] for side in broke)
        clusters = {probe.id: probe.cluster for probe in runs.first.plan.probes}
        wanted_difference = compare(a, b, [clusters[each] for each in same]).difference
        assert found.pair is not None and found.pair.n == len(same) == found.main.shared.n_all
        assert found.pair.difference == wanted_difference
        table = found.pair.table
        assert [found.main.shared.n(w) for w in WHICH] == [
            table.only_a, table.only_b, table.both, table.neither,
        ]  # fmt: skip
        assert found.main.first is not None
        estimates = read_estimates(runs.first.folder)
        rate = find(estimates, runs.first.plan.models[model.a].id, runs.scope, ALL, "breach")
        assert rate is not None and found.main.first.estimate == rate.estimate
    (probes,) = (each for each in runs.differences() if each.what == "probes")
    assert (probes.first, probes.second) == (
        "36, 34 of them in both runs", "35, 34 of them in both runs",
    )  # fmt: skip
    assert "second minus first" in page(finished, runs)


def test_a_model_of_the_same_name_and_another_id_is_named_so(tmp_path: Path) -> None:
    plan = small_study.small_plan()
    rebuilt = msgspec.structs.replace(plan.models[1], id="f" * 32)
    other = msgspec.structs.replace(plan, models=(plan.models[0], rebuilt))
    place = place_of(tmp_path, first=(plan, {}), second=(other, {}))
    runs = two(place)
    assert [model.is_same for model in runs.models] == [True, False]
    text = page(place, runs)
    assert text.count("Only the name is the same") == 1 and "<code>ffffffff</code>" in text


def test_hostile_names_are_text_in_every_place(tmp_path: Path) -> None:
    plan = small_study.small_plan()
    application = msgspec.structs.replace(plan.application, name=HOSTILE)
    models = (msgspec.structs.replace(plan.models[0], name=HOSTILE), plan.models[1])
    hostile = msgspec.structs.replace(plan, application=application, models=models)
    folder = "<script>x"
    place = place_of(tmp_path, **{"first": (hostile, {}), folder: (hostile, {})})
    runs = two(place, "first", folder)
    name = runs.first.names[0]
    pages = (page(place, runs), page(place, runs, "/compare/trial", model=name, which="neither"))
    for text in (*pages, Site(place).render("/")):
        assert "&lt;script&gt;x" in text and not re.search("<script>|\x1b|\u202e", text)
        for tag, attributes in Tags(text).found:
            assert not any(key.startswith("on") or key == "style" for key in attributes), (tag, attributes)


def test_two_runs_are_chosen_from_the_list_of_studies(small: StudyPlace, tmp_path: Path) -> None:
    runs, site = two(small), Site(small)
    forms = [attributes for tag, attributes in Tags(site.render("/")).found if tag == "form"]
    assert [(form["method"], form["action"]) for form in forms] == [("get", "/compare")]
    assert "Choose two different runs" in site.render("/compare", {"a": runs.first.key, "b": runs.first.key})
    assert "<form" in site.render("/compare")
    assert "/compare" not in Site(small, is_live=False).render("/")
    alone = place_of(tmp_path / "alone", only=(small_study.small_plan(), {}))
    assert "<form" not in Site(alone).render("/")
