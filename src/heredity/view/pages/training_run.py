"""One training: its loss, its speed and the time left, the numbers, and answers that it learns."""

from __future__ import annotations

import msgspec

from heredity.core.errors import HeredityError, UnknownName
from heredity.core.files import read_file
from heredity.core.sanitize import label
from heredity.lineage.store import RUN, RunInProgress
from heredity.view.pages.lineage import lineage_of, store_of
from heredity.view.pages.training import LossPoint, ShownTraining, find, read_curve, runs, samples
from heredity.view.site import Asked, Site, curve

PATH, MENU, TAB = "/training/{run}", "", ""
IS_EXPORTED = False
_LINES = 20  # of the table


def render(site: Site, asked: Asked) -> str:
    """The page."""
    store, key = store_of(site), asked.parts["run"]
    run = find(store, key)
    if run is None:
        raise UnknownName("training", label(key), [each.key for each in runs(store)])
    points, models = read_curve(run), lineage_of(site).models
    words = f"Loss of {run.name} over {points.n_done} steps"
    return site.html(
        "training_run.html.jinja", asked,
        run=run, curve=points, svg=curve([(p.last, p.loss) for p in points.points], label(words, 200)),
        rows=_few(points.points), terms=sorted({name for p in points.points for name in p.terms})[:6],
        samples=samples(run), settings=_settings(run),
        parents=[(ident, models.get(ident)) for ident in run.parents],
    )  # fmt: skip


def _few(points: list[LossPoint]) -> list[LossPoint]:
    """Points for a table, evenly chosen, with the first and the last."""
    if len(points) <= _LINES:
        return points
    return [points[round(i * (len(points) - 1) / (_LINES - 1))] for i in range(_LINES)]


def _settings(run: ShownTraining) -> list[tuple[str, str]]:
    if run.model is not None:
        held = run.model.recipe.settings
    else:
        try:
            held = msgspec.json.decode(read_file(run.folder / RUN), type=RunInProgress).recipe.settings
        except (OSError, HeredityError, msgspec.DecodeError):
            return []  # of a release before this file
    return [(k, v if isinstance(v, str) else msgspec.json.encode(v).decode()) for k, v in held.items()]
