"""One model of a lineage: its kin around it, its files, how it was made, and every study that it was in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from heredity.core.records import Model
from heredity.lineage import catalog
from heredity.view.pages.lineage import Kin, chosen, hops_of, picture
from heredity.view.places import OpenStudy
from heredity.view.rates import ShownRate, board_of
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/lineage/{model}", "", ""
IS_EXPORTED = True
_MAX_STUDIES = 50  # studies whose rates are shown


class ModelInStudy(NamedTuple):
    """A study that a model was in, with the model's breach rate under each scope."""

    study: OpenStudy
    state: str
    rates: list[tuple[str, ShownRate]]


def render(site: Site, asked: Asked) -> str:
    """The page; `hops` in the query: the edges that its figure reaches."""
    graph, kin = chosen(site, asked, "model")
    hops = hops_of(asked)
    shown = graph.around(kin.id, hops)
    return site.html(
        "lineage_model.html.jinja", asked,
        graph=graph, kin=kin, hops=hops, picture=picture(site, graph, shown, kin.id),
        facts=[] if kin.record is None else list(_facts(kin.record)), edges=graph.edges_of(kin.id),
        studies=[_in_study(study, kin) for study in kin.studies[:_MAX_STUDIES]], path=asked.path,
    )  # fmt: skip


def _facts(model: Model) -> Iterator[tuple[str, str]]:
    """The record in words. Files are a table of their own."""
    yield from (("family", model.family), ("licence", model.licence), ("format", model.format))
    for name, value in (("architecture", model.architecture), ("quantization", model.quantization)):
        if isinstance(value, str):
            yield name, value
    yield "recipe", model.recipe.kind
    for name, value in model.recipe.settings.items():
        yield name, value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if model.made.at:
        device = "" if isinstance(model.made.device, msgspec.UnsetType) else f" on {model.made.device}"
        yield "made", f"{model.made.at[:16].replace('T', ' ')} in {model.made.seconds:,.0f} s{device}"
    yield from model.notes.items()
    yield from catalog.facts(model)


def _in_study(study: OpenStudy, kin: Kin) -> ModelInStudy:
    study.refresh(0.02)
    board = board_of(study)
    studies = [
        (scope, board.rate(study.places[kin.id], scope, "breach")) for scope in board.outcomes.breach_scopes
    ]
    return ModelInStudy(study, study.progress().state, [(scope, rate) for scope, rate in studies if rate])
