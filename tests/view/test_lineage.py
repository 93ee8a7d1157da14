"""The lineage: which edges it has, what studies found along them, and its pages and links."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from heredity.core.errors import UnknownName, UsageError
from heredity.core.records import FileHash, Made, Model, RecipeRecord
from heredity.lineage.graph import Edge
from heredity.lineage.store import identity, write_record
from heredity.stats.edges import KINDS
from heredity.study.storage import read_estimates
from heredity.view.pages.lineage import LineageGraph, lineage_of
from heredity.view.places import StudyPlace
from heredity.view.site import Site
from tests.support import report_studies, small_study
from tests.view.conftest import opened, written
from tests.view.test_pages import HOSTILE, Tags


def record(
    store: Path, name: str, kind: str = "lora", parents: tuple[str, ...] = (), **settings: object
) -> str:
    """Write the record of a model into a store, and return its id."""
    files = (FileHash("model.safetensors", 1234, "ab" * 32),)
    recipe = RecipeRecord(kind, {"of": name} | settings)
    ident = identity(recipe, parents, files)
    made = Made("2026-01-02T03:04:05+00:00", "host", 61.5, {})
    found = Model(ident, name, "family", "text", "MIT", "safetensors", parents, recipe, files, made)
    write_record(found, store / "models" / ident)
    return ident


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A base, its form, four generations below it, and a study of a parent and its child."""
    root = tmp_path_factory.mktemp("lineage")
    store, made = root / "store", report_studies.plan(n_probes=4)
    base = record(store, "base", "pull")
    form = record(store, "base-bf16", "dequantize", (base,))
    at = form
    for n in range(1, 5):
        at = record(store, f"child-{n}", "lora", (at,), data={"name": "tickets.jsonl", "rows": 40})
    record(store, "orphan", "lora", ("f" * 32,))
    (store / "models" / ("0" * 32)).mkdir()
    (store / "models" / ("0" * 32) / "model.json").write_text("{")
    edge = Edge(made.models[0].id, made.models[1].id, "finetune > lora")
    report_studies.make(root / "runs" / "desk", msgspec.structs.replace(made, edges=(edge,)))
    return Site(StudyPlace(root / "runs", store))


def ident(found: LineageGraph, name: str) -> str:
    return next(kin.id for kin in found.models.values() if kin.name == name)


def test_a_form_stands_for_its_model_and_a_missing_parent_is_named(site: Site) -> None:
    found = lineage_of(site)
    called = {(found.models[p].name, found.models[c].name): edge.made for (p, c), edge in found.edges.items()}
    assert called[("base", "child-1")] == "lora" and called[("f" * 12, "orphan")] == "lora"
    assert "base-bf16" not in {kin.name for kin in found.models.values()}
    assert [form.name for form in found.models[ident(found, "base")].forms] == ["base-bf16"]
    assert len(found.problems) == 1 and "model.json" in found.problems[0]


def test_two_edges_around_a_model_are_shown_and_more_on_demand(site: Site) -> None:
    found = lineage_of(site)
    child, base = ident(found, "child-4"), ident(found, "base")
    assert {found.models[each].name for each in found.around(child, 2)} == {"child-4", "child-3", "child-2"}
    page = site.render(f"/lineage/{child}")
    figure = page[page.index("<svg class") : page.index("Parents and children")]
    assert f'href="/lineage/{base}"' not in figure and "1 more" in figure
    assert f'href="/lineage/{child}?hops=3"' in page
    wide = site.render(f"/lineage/{child}", {"hops": "4"})
    assert f'<a href="/lineage/{base}"' in wide[: wide.index("Parents and children")]
    for hops in ("0", "x"):
        with pytest.raises(UsageError):
            site.render(f"/lineage/{child}", {"hops": hops})


def test_an_edge_has_the_verdict_and_the_counts_of_its_study(site: Site) -> None:
    found, study = lineage_of(site), opened(site.place)
    parent, child = (model.id for model in study.plan.models)
    edge = found.edges[parent, child]
    (one,) = edge.studies
    estimates = read_estimates(study.folder)
    scopes = {e.compared.technique: e for e in estimates.edges if e.compared.measure == "breach"}
    held = scopes[estimates.main_scope()]
    assert len(scopes) > 1 and one.row and one.row.word in KINDS
    assert (one.kept, one.lost, one.gained, one.never) == (held.kept, held.lost, held.gained, held.never)
    card = site.render(f"/s/{study.key}")
    assert (
        f"The parent held {one.lost} of the " in card
        and f"(lost), and the child {one.gained} of the " in card
    )
    page = site.render(f"/lineage/{parent}/{child}")
    assert f"kept {one.kept}, lost {one.lost}, gained {one.gained}" in page
    for which in ("only-a", "only-b", "both", "neither"):
        wanted = rf'/s/{study.key}/pairs\?[^"]*scope=judge_free&amp;which={which}">{one.both.n(which)}</a>'
        assert re.search(wanted, page)


def test_only_trials_that_both_decided_are_called_lost_or_gained(site: Site) -> None:
    study = opened(site.place)
    parent, child = (model.id for model in study.plan.models)
    edge, listed = site.render(f"/lineage/{parent}/{child}"), site.render(f"/s/{study.key}/pairs")
    assert edge.count("lost") == edge.count("gained") == 1
    assert "lost" not in listed and "gained" not in listed and "An unclear answer is not a breach." in listed


def test_a_card_has_files_recipe_data_licence_and_studies(site: Site) -> None:
    found, study = lineage_of(site), opened(site.place)
    card = site.render(f"/lineage/{ident(found, 'child-2')}")
    for part in ("model.safetensors", "ab" * 32, "1,234", "lora", "tickets.jsonl", "MIT", "62 s", "family"):
        assert part in card, part
    asked = site.render(f"/lineage/{study.plan.models[0].id}")
    assert f'href="/s/{study.key}"' in asked and "it is not in this store" in asked
    form = site.render(f"/lineage/{found.models[ident(found, 'base')].forms[0].id}")
    assert "<h1>base</h1>" in form and "base-bf16" in form


def test_a_running_study_decides_nothing_and_an_edge_without_one_says_so(tmp_path: Path) -> None:
    place = written(tmp_path, {0: "broke", 12: "broke"}, small_study.small_plan(edges=True))
    site = Site(place)
    (edge,) = lineage_of(site).edges.values()
    assert (edge.kind, edge.studies[0].row, edge.studies[0].words) == ("unknown", None, "undecided so far")
    page = site.render("/lineage")
    assert 'class="edge unknown"' in page and "undecided so far" in page
    assert "It has no verdict yet" in site.render(f"/lineage/{edge.parent}/{edge.child}")


def test_a_name_of_a_store_is_text_and_links_lead_to_pages(tmp_path: Path) -> None:
    store = tmp_path / "store"
    base = record(store, HOSTILE, "pull")
    child = record(store, "b", HOSTILE, (base,), note=HOSTILE)
    site = Site(StudyPlace(tmp_path / "runs", store))
    for path in ("/lineage", f"/lineage/{base}", f"/lineage/{child}", f"/lineage/{base}/{child}"):
        page = site.render(path)
        assert "&lt;script&gt;" in page and not re.search("<script>|\x1b|\u202e", page)
        for tag, attributes in Tags(page).found:
            assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
            if tag == "a" and not (address := attributes["href"] or "").startswith("#"):
                site.find(address.partition("?")[0])
    assert "no study compared them" in site.render("/lineage") and 'class="edge none"' in site.render(
        "/lineage"
    )
    for path in ("/lineage/nothing", f"/lineage/{child}/{base}"):
        with pytest.raises(UnknownName):
            site.render(path)


def test_what_is_sent_to_others_holds_no_model_of_the_readers_store(site: Site) -> None:
    sent = lineage_of(Site(site.place, is_live=False))
    assert {kin.name for kin in sent.models.values()} == {m.name for m in opened(site.place).plan.models}


def test_an_empty_store_says_how_to_begin(tmp_path: Path) -> None:
    assert "heredity pull" in Site(StudyPlace(tmp_path, tmp_path / "store")).render("/lineage")
