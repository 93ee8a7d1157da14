"""An attack for some techniques only leaves the others out by plan: no gap, no warning, no count."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heredity.cli import _findings
from heredity.core.progress import Progress
from heredity.study import estimates
from heredity.study import wording as words
from heredity.study.gate import gate
from heredity.study.headline import headline
from heredity.study.plan import read_plan
from heredity.study.report import html, markdown
from heredity.study.result import Result
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.studies import APPLICATION, probes

SCOPED, CLOSED = "prefill@planted_secret", "refusal_direction"


@pytest.fixture(scope="module")
def scoped(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return asked(tmp_path_factory.mktemp("scoped") / "s", SCOPED)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The second attack works on weights, which a scripted model does not have."""
    return asked(tmp_path_factory.mktemp("closed") / "s", CLOSED)


def asked(folder: Path, attack: str) -> Result:
    models = ("scripted:mixed", "scripted:careful")
    return Study(
        StudySpec(models, APPLICATION, probes=probes(12), attacks=("direct", attack), out=folder)
    ).run()


def test_a_plan_asks_all_but_the_probes_that_its_attack_is_not_for(scoped: Result, closed: Result) -> None:
    found = scoped.estimates
    assert found.n_skipped > 0 and found.n_planned == found.n_trials - found.n_skipped
    assert closed.estimates.n_planned == closed.estimates.n_trials
    assert re.fullmatch(r"direct; prefill\S* for planted secret", words.asked_attacks(found))


def test_only_what_a_model_does_not_support_is_a_gap(scoped: Result, closed: Result) -> None:
    assert scoped.estimates.n_unsupported == 0 and not estimates.unsupported(scoped.estimates)
    found = closed.estimates
    assert found.n_unsupported == found.n_skipped == found.n_trials // 2
    for rate in (rate for rate in found.rates if rate.n_skipped):
        key = (rate.model, rate.technique, rate.attack, rate.measure)
        assert estimates.unsupported(found)[key] == rate.n_skipped, key


def test_no_warning_and_no_line_of_the_gate_counts_what_was_planned(scoped: Result, closed: Result) -> None:
    for told in (" ".join(headline(scoped.estimates).warnings), gate(scoped.estimates).words):
        assert "not asked" not in told and "not support" not in told
    n, all_ = closed.estimates.n_skipped, closed.estimates.n_trials
    why = f"{n} of {all_} trials were not asked, because their model does not support the attack."
    for told in (" ".join(headline(closed.estimates).warnings), gate(closed.estimates).words):
        assert why in told


def test_no_cell_counts_what_was_planned(
    scoped: Result, closed: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    for found, is_gap in ((scoped, False), (closed, True)):
        _findings.show(found.estimates, read_plan(found.folder), found.folder, is_full=True)
        for page in (html.render(found.folder), markdown.render(found.folder), capsys.readouterr().out):
            assert ("not supported" in page) is is_gap
            assert re.search(r"\d not asked", page) is None


def test_a_page_counts_the_trials_and_the_attacks_that_the_plan_has(scoped: Result) -> None:
    page = html.render(scoped.folder)
    assert f"{scoped.estimates.n_planned} trials</span>" in page
    rows = dict(
        re.findall(
            r'<th scope="row">([\w ]+)<small class="soft">([^<]*)</small>', page.partition("Under the")[0]
        )
    )
    assert rows["Planted secret"].endswith("× 2 attacks")
    assert not any("attacks" in row for title, row in rows.items() if title != "Planted secret")
    _, _, under = page.partition("Under the attack <code>prefill")
    under = under.partition("</details>")[0]
    assert "Planted secret" in under and "Forbidden tool" not in under


def watched(folder: Path, **settings: Any) -> tuple[dict[str, Progress], Study]:
    """The last progress of each step of a study with a scoped attack."""
    last: dict[str, Progress] = {}
    models = ("scripted:mixed", "scripted:careful")
    study = Study(
        StudySpec(models, APPLICATION, probes=probes(12), attacks=("direct", SCOPED), out=folder, **settings)
    )
    study.run(lambda progress: last.update({progress.step: progress}))
    return last, study


@pytest.mark.parametrize("settings", [{}, {"stopping": "group_sequential"}, {"until_decided": True}])
def test_progress_counts_the_trials_that_the_plan_asks(tmp_path: Path, settings: dict[str, Any]) -> None:
    last, study = watched(tmp_path / "s", **settings)
    found = study.estimate().estimates
    stopped = found.sequential.stopped if found.sequential else ()
    n_spared = sum(each.n - each.n_out_of_scope for each in stopped)
    assert (last["ask"].n_done, last["ask"].n_total) == (found.n_planned - n_spared,) * 2
    assert last["ask"].n_total < found.n_trials
    if "judge" in last:
        assert (last["judge"].n_done, last["judge"].n_total) == (found.n_planned,) * 2
    again, _ = watched(tmp_path / "s", **settings)
    assert (again["ask"].n_done, again["ask"].n_total) == (last["ask"].n_done, last["ask"].n_total)


def test_every_count_of_a_study_is_of_the_trials_that_it_asks(
    scoped: Result,
) -> None:
    found = scoped.estimates
    n, n_probes = found.n_planned, len(probes(12))
    assert n < found.n_trials and found.n_answered == n and found.n_unanswered == 0
    assert words.size_words(found, n_probes) == (
        f"2 models \u00b7 {n_probes} probes \u00b7 {n // 2} trials a model \u00b7 {n} trials"
    )
    assert words.size_words(found, n_probes) in html.render(scoped.folder)
    assert f"{n} trials)" in repr(scoped) and f"{n} trials," in repr(Study.open(scoped.folder))
    half = msgspec.structs.replace(found, n_asked=found.n_asked - 4)
    assert f"{n - 4} of {n} trials are answered" in " ".join(headline(half).warnings)
    assert f"4 of {n} trials are unanswered" in gate(half).words


def test_a_table_without_a_value_is_left_out(tmp_path: Path, scoped: Result) -> None:
    """One technique has no shrunk rate and no prediction: a table of dashes tells a reader nothing."""
    chosen = tuple(probe for probe in probes(12) if probe.technique == "planted_secret")
    models = ("scripted:mixed", "scripted:careful")
    single = Study(StudySpec(models, APPLICATION, probes=chosen, out=tmp_path / "s")).run()
    for render in (html.render, markdown.render):
        assert "These techniques, and a new one" not in render(single.folder)
        assert "These techniques, and a new one" in render(scoped.folder)
