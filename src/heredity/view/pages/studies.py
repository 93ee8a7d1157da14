"""Every study of a place: its state, its models, and its verdict."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NamedTuple

from heredity.core.errors import HeredityError
from heredity.study.advice import advise
from heredity.study.estimates import Estimates
from heredity.study.folders import is_study
from heredity.study.plan import PLAN
from heredity.view.places import ListedStudy, OpenStudy, StudyProgress
from heredity.view.queries import Chip, chips
from heredity.view.site import Asked, Page, Site

_SECONDS = 1.0  # that reading new rows may take, of all studies together


class StudyLine(NamedTuple):
    """A study as a line of the list. advice: "" before it has estimates. why: its error, if it has one."""

    listed: ListedStudy
    study: OpenStudy | None
    progress: StudyProgress | None
    chips: list[Chip]
    at: str
    advice: str = ""
    why: str = ""


def render(site: Site, asked: Asked) -> str:
    """The list, the newest first."""
    seen = site.place.mark()  # first: what comes while the rows are read is an event
    end = time.monotonic() + _SECONDS
    made = (_line(site, listed, end - time.monotonic()) for listed in site.place.studies())
    lines = [line for line in made if line.study is not None or is_study(line.listed.folder / PLAN)]
    lines.sort(key=lambda line: line.at, reverse=True)
    return site.html("studies.html.jinja", asked, lines=lines, seen=seen, root=str(site.place.root))


def _line(site: Site, listed: ListedStudy, seconds: float) -> StudyLine:
    try:
        study = site.place.open(listed.key)
        study.refresh(max(seconds, 0.02))
        estimates = study.estimates()
        at, progress = planned_at(study), study.progress()
        if not isinstance(estimates, Estimates) or estimates.study != study.saved.study:
            return StudyLine(listed, study, progress, [], at)
        advice = advise(estimates, study.plan).sentence
        return StudyLine(listed, study, progress, chips(estimates), at, advice)
    except (HeredityError, OSError) as error:
        return StudyLine(listed, None, None, [], "", why=str(error))


def planned_at(study: OpenStudy) -> str:
    """When it was planned, to the second; of an import, when its plan was written."""
    at = study.saved.at
    if at is not None:
        return at[:19].replace("T", " ")
    written = datetime.fromtimestamp((study.folder / PLAN).stat().st_mtime, UTC)
    return written.isoformat(sep=" ", timespec="seconds")[:19]


PAGES = (Page("/", render, menu="1 Studies", is_exported=True),)
