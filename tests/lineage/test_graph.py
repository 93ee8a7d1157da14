"""Edges, families and forests, from records alone."""

from __future__ import annotations

import re

import msgspec

from heredity.core.records import Model, RecipeRecord, digest
from heredity.lineage import graph
from heredity.lineage.graph import Edge
from heredity.lineage.store import scripted


def model(name: str, *parents: Model, kind: str = "lora", format: str = "scripted") -> Model:
    """A record with this descent."""
    record = scripted("scripted:careful").record
    ids = tuple(parent.id for parent in parents)
    return msgspec.structs.replace(
        record, id=digest([name, kind, ids]), name=name, parents=ids, format=format,
        recipe=RecipeRecord(kind, {}),
    )  # fmt: skip


GGUF = model("base", kind="pull", format="gguf")
PLAIN = model("base-bf16", GGUF, kind="dequantize", format="safetensors")
OTHER = model("llamacpp:base", GGUF, kind="engine", format="gguf")
TUNED = model("tuned", PLAIN, format="adapter")
FOLDED = model("tuned-merged", TUNED, PLAIN, kind="merge_adapter")
GRAND = model("grand", FOLDED, kind="finetune")
TEACHER = model("teacher", kind="pull")
STUDENT = model("student", PLAIN, TEACHER, kind="distill")
ALL = [GGUF, PLAIN, OTHER, TUNED, FOLDED, GRAND, TEACHER, STUDENT]
KNOWN = {each.id: each for each in ALL}


def edges(*models: Model) -> list[tuple[str, str, str, str]]:
    found = graph.edges(models, KNOWN)
    return [(KNOWN[e.parent].name, KNOWN[e.child].name, e.recipe, e.role) for e in found]


def test_an_edge_leads_from_the_nearest_ancestor_that_is_asked() -> None:
    assert edges(GGUF, TUNED) == [("base", "tuned", "lora", "")]
    assert edges(GGUF, TUNED, GRAND) == [("base", "tuned", "lora", ""), ("tuned", "grand", "finetune", "")]


def test_steps_that_were_not_asked_are_named_on_the_edge_without_mere_forms() -> None:
    assert edges(GGUF, GRAND) == [("base", "grand", "lora > finetune", "")]
    assert edges(GGUF, OTHER) == [("base", "llamacpp:base", "engine", "")]


def test_a_child_in_an_engine_is_compared_with_its_ancestor_in_that_engine() -> None:
    def form(of: Model, kind: str, **settings: object) -> Model:
        made = model(f"{kind}-{settings}-{of.name}", of, kind=kind, format="safetensors")
        return msgspec.structs.replace(made, recipe=RecipeRecord(kind, settings))

    def found(*models: Model) -> list[Edge]:
        return list(graph.edges(models, KNOWN | {each.id: each for each in models}))

    base, tuned, grand = (form(each, "engine", engine="vllm") for each in (PLAIN, TUNED, GRAND))
    assert found(base, tuned) == [Edge(base.id, tuned.id, "lora")]
    assert found(PLAIN, base, tuned) == [Edge(PLAIN.id, base.id, "engine"), Edge(base.id, tuned.id, "lora")]
    assert found(base, grand) == [Edge(base.id, grand.id, "lora > finetune")]
    assert found(base, tuned, grand)[1:] == [Edge(tuned.id, grand.id, "finetune")]
    # What a form is a form of comes first, and an ancestor in another engine is no match.
    assert found(base, TUNED, tuned)[-1] == Edge(TUNED.id, tuned.id, "engine")
    other = form(PLAIN, "engine", engine="transformers")
    assert found(other, tuned) == []
    assert found(PLAIN, other, tuned)[-1] == Edge(PLAIN.id, tuned.id, "lora")
    # The parents of a taught child keep their parts, and no part goes on to a child of that child.
    teacher, student = form(TEACHER, "engine", engine="vllm"), form(STUDENT, "engine", engine="vllm")
    assert [(e.recipe, e.role) for e in found(base, teacher, student)] == [
        ("distill", "start"),
        ("distill", "teacher"),
    ]
    assert [e.role for e in found(TEACHER, model("tuned-student", STUDENT, kind="lora"))] == [""]
    for kind, settings in (("kv_cache", {"bits": 4}), ("dtype", {"dtype": "float32"})):
        parent, child = form(PLAIN, kind, **settings), form(FOLDED, kind, **settings)
        assert found(parent, child) == [Edge(parent.id, child.id, "lora")]
        assert found(form(PLAIN, kind, bits=8), child) == []


def test_a_form_that_is_asked_stands_between() -> None:
    assert edges(GGUF, PLAIN, TUNED) == [
        ("base", "base-bf16", "dequantize", ""),
        ("base-bf16", "tuned", "lora", ""),
    ]


def test_a_distilled_child_has_two_references() -> None:
    assert edges(GGUF, TEACHER, STUDENT) == [
        ("base", "student", "distill", "start"),
        ("teacher", "student", "distill", "teacher"),
    ]


def test_a_merge_has_all_its_parents_and_a_folded_adapter_only_itself() -> None:
    merged = model("merged", TUNED, STUDENT, kind="merge")
    found = graph.edges([TUNED, STUDENT, merged], KNOWN)
    assert [e.parent for e in found] == [TUNED.id, STUDENT.id]
    assert edges(GGUF, TUNED, FOLDED)[-1:] == [("tuned", "tuned-merged", "merge_adapter", "")]


def test_an_ancestor_that_is_reached_twice_gives_one_edge() -> None:
    merged = model("merged", TUNED, FOLDED, kind="merge")
    assert graph.edges([GGUF, merged], KNOWN) == (Edge(GGUF.id, merged.id, "lora > merge"),)


def test_unrelated_models_have_no_edge() -> None:
    assert edges(GGUF, TEACHER) == []
    assert graph.edges([TUNED], {TUNED.id: TUNED}) == ()  # and a missing ancestor is no error


def test_a_family_is_asked_once_in_whatever_forms_it_is_stored() -> None:
    found = graph.family(GGUF, ALL, lambda _: "")
    assert [m.name for m in found.asked] == ["base", "tuned", "student", "grand"]
    left = {m.name: why for m, why in found.left_out}
    assert left == {
        "base-bf16": "another form of 'base', which is asked",
        "llamacpp:base": "another form of 'base', which is asked",
        "tuned-merged": "another form of 'tuned', which is asked",
    }


def test_a_form_is_asked_where_what_it_is_a_form_of_is_not() -> None:
    assert graph.family(PLAIN, ALL, lambda _: "").asked[0] is PLAIN
    found = graph.family(GGUF, ALL, lambda m: "no engine" if m is TUNED else "")
    assert "tuned-merged" in [m.name for m in found.asked]
    assert (TUNED, "no engine") in found.left_out


def test_the_forest_has_foundations_first_and_one_line_a_model() -> None:
    lines = graph.forest(sorted(ALL, key=lambda m: m.name)).splitlines()
    assert [re.sub(r"  [0-9a-f]{12}  .*", "", line) for line in lines] == [
        "base", "├─ base-bf16", "│  ├─ student", "│  └─ tuned", "│     └─ tuned-merged", "│        └─ grand",
        "└─ llamacpp:base", "teacher", "└─ student",
    ]  # fmt: skip
    assert lines[0] == f"base  {GGUF.id[:12]}  pull, gguf"
    assert lines[-1] == f"└─ student  {STUDENT.id[:12]}  (drawn above)"


def test_a_forest_is_drawn_also_where_it_is_not_whole_goes_round_or_is_very_deep() -> None:
    assert "not in this store" in graph.forest([TUNED])
    one = msgspec.structs.replace(TUNED, id="a" * 32, parents=("b" * 32,))
    two = msgspec.structs.replace(GRAND, id="b" * 32, parents=("a" * 32,))
    assert len(graph.forest([one, two]).splitlines()) == 3
    chain = [GGUF]
    for i in range(3000):
        chain.append(model(f"m{i}", chain[-1]))
    assert len(graph.forest(chain).splitlines()) == 3001


def test_a_base_made_here_stays_one_in_other_numbers_until_something_teaches_it() -> None:
    base = model("home", kind="pretrain")
    small = model("home-q4_0", base, kind="quantize", format="gguf")
    read = model("home-q4_0-bf16", small, kind="dequantize")
    taught = model("taught", read, kind="instruct")
    half = model("half", base, taught, kind="merge")
    known = {each.id: each for each in (base, small, read, taught, half)}
    assert [graph.is_base(each, known) for each in known.values()] == [True, True, True, False, False]
    assert not graph.is_base(PLAIN, KNOWN)  # somebody else's foundation says by its template what it is
    assert not graph.is_base(read, {base.id: base, read.id: read})  # what lay between is not known
