"""Studies that the tests of the pages read: a finished one, and one whose rows come while a test looks on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from heredity.core.records import Outcome
from heredity.study.plan import Plan, write_plan
from heredity.view.places import OpenStudy, StudyPlace
from heredity.view.site import Site
from tests.support import report_studies, small_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The pages over one finished study of two models and three techniques, "desk"."""
    root = tmp_path_factory.mktemp("place")
    report_studies.make(root / "runs" / "desk", report_studies.plan(n_probes=6))
    return Site(StudyPlace(root / "runs", root / "store"))


def written(
    folder: Path, outcomes: Mapping[int, Outcome | None] | None = None, plan: Plan | None = None
) -> StudyPlace:
    """A place with one study of 24 trials, which has no estimates yet."""
    made = plan or small_study.small_plan()
    write_plan(folder / "runs" / "small", made)
    small_study.write_rows(folder / "runs" / "small", made, outcomes or {})
    return StudyPlace(folder / "runs", folder / "store")


def opened(place: StudyPlace) -> OpenStudy:
    """The only study of a place, with its rows read."""
    study = place.open(place.studies()[0].key)
    study.refresh()
    return study
