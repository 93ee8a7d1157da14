"""The trainings of the store: those in progress and those whose models it holds."""

from __future__ import annotations

from typing import NamedTuple

from heredity.core.errors import HeredityError
from heredity.view.lineage import store_of
from heredity.view.site import Asked, Site
from heredity.view.training import ShownTraining, TrainingCurve, read_curve, runs

PATH, MENU, TAB = "/training", "4 Training", ""
IS_EXPORTED = False
_MOST = 100  # runs that are listed


class TrainingLine(NamedTuple):
    """A run of the list. `why`: the error of rows that cannot be read."""

    run: ShownTraining
    curve: TrainingCurve | None
    why: str = ""


def render(site: Site, asked: Asked) -> str:
    """The list."""
    store = store_of(site)
    found = runs(store)
    lines = [_line(run) for run in found[:_MOST]]
    return site.html("training.html.jinja", asked, lines=lines, n=len(found), store=store)


def _line(run: ShownTraining) -> TrainingLine:
    try:
        return TrainingLine(run, read_curve(run))
    except (HeredityError, OSError) as error:
        return TrainingLine(run, None, str(error))
