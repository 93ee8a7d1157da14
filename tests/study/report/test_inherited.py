"""What was inherited, in every format: the drawn lineage, the tables, and names that stay names."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.cli import _findings
from heredity.lineage.graph import Edge
from heredity.stats.edges import KINDS
from heredity.study import figures
from heredity.study.estimates import Estimates
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.headline import edges_sentence
from heredity.study.plan import read_plan
from heredity.study.report import html, json, markdown
from heredity.study.sections import study_sections
from heredity.study.storage import read_estimates
from tests.study.report.test_html import assert_is_clean
from tests.support.hostile_text import NASTY
from tests.support.report_studies import make, plan


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models: the second tuned from the first, the third distilled from both."""
    made = plan(3)
    first, second, third = (model.id for model in made.models)
    edges = (
        Edge(first, second, "lora"),
        Edge(first, third, "distill", "start"),
        Edge(second, third, "distill", "teacher"),
    )
    return make(tmp_path_factory.mktemp("lineage"), msgspec.structs.replace(made, edges=edges))


@pytest.fixture(scope="module")
def estimates(study: Path) -> Estimates:
    return read_estimates(study)


def test_the_page_draws_the_lineage_and_says_each_verdict_in_words(study: Path) -> None:
    page = html.render(study)
    assert_is_clean(page)
    assert 'id="edges">What was inherited' in page and 'href="#edges"' in page
    drawn = re.search(r'<svg class="lineage[ "].*?</svg>(?=</figure>)', page, re.DOTALL)
    assert drawn is not None
    words = [text.text for text in ElementTree.fromstring(drawn[0]).iter("text")]
    assert {"lora", "distill, start", "distill, teacher"} <= set(words)
    assert sum(word in KINDS for word in words) == 3
    assert drawn[0].count('class="node"') == 3 and drawn[0].count('class="head') == 3


def test_a_study_without_a_descent_has_no_such_section(tmp_path: Path) -> None:
    folder = make(tmp_path)
    assert "What was inherited" not in html.render(folder)
    assert "What was inherited" not in markdown.render(folder)
    assert edges_sentence(read_estimates(folder)) == ""


def test_a_narrow_terminal_cuts_no_name_of_an_edge(
    study: Path, estimates: Estimates, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "qwen2.5-coder-0.5b-instruct"
    renamed = tuple(msgspec.structs.replace(m, name=f"{long}-{i}") for i, m in enumerate(estimates.models))
    _findings.show(msgspec.structs.replace(estimates, models=renamed), read_plan(study), study, is_full=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{long}-1 of {long}-0, lora: " in printed and "still held" in printed


def test_an_edge_without_the_trials_to_show_any_difference_says_so(study: Path, estimates: Estimates) -> None:
    edges = tuple(
        msgspec.structs.replace(e, compared=msgspec.structs.replace(e.compared, detectable=None))
        for e in estimates.edges
    )
    made = study_sections(RecordedStudy(read_plan(study), msgspec.structs.replace(estimates, edges=edges)))
    text = " ".join(line for section in made for line in section.sentences)
    assert "too few trials to show any" in text and "would show" not in text


def test_the_flat_table_has_every_edge_with_its_retention(
    study: Path, estimates: Estimates, tmp_path: Path
) -> None:
    rows = msgspec.json.decode(json.write(study, tmp_path / "flat.json").read_bytes())["edges"]
    assert len(rows) == len(estimates.edges) + len(estimates.technique_edges)
    assert (rows[0]["kept"], rows[0]["retention_value"]) == (
        estimates.edges[0].kept, estimates.edges[0].retention.value,
    )  # fmt: skip
    assert {"parent", "child", "recipe", "role", "verdict", "p_holm"} <= set(rows[0])


# --- the figure -------------------------------------------------------------------------------------


def boxes(svg: str, kind: str = "node") -> list[tuple[float, float, float, float]]:
    found = (e.attrib for e in ElementTree.fromstring(svg).iter("rect") if e.attrib["class"] == kind)
    return [tuple(float(a[k]) for k in ("x", "y", "width", "height")) for a in found]  # type: ignore[misc]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30))
def test_no_two_models_overlap_and_all_lie_inside(pairs: list[tuple[int, int]]) -> None:
    nodes = [figures.Node(str(i), f"model-{i}", i, "broke 1 %") for i in range(12)]
    ways = dict.fromkeys((str(min(p)), str(max(p))) for p in pairs if p[0] != p[1])
    edges = [figures.DrawnEdge(a, b, "worse", ("finetune", "worse", "lost 3 of 9")) for a, b in ways]
    svg = figures.graph(nodes, edges, "words")
    root, found = ElementTree.fromstring(svg), boxes(svg)
    wide, high = float(root.attrib["width"]), float(root.attrib["height"])
    assert len(found) == 12
    for i, (x, y, w, h) in enumerate(found):
        assert x >= 0 and x + w <= wide and y >= 0 and y + h <= high
        assert all(y + h <= v or v + deep <= y or abs(x - u) >= w for u, v, _, deep in found[:i])
    lefts = {str(i): box[0] for i, box in enumerate(found)}
    assert all(lefts[a] < lefts[b] for a, b in ways)  # parents left of children


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30))
def test_no_word_of_an_edge_lies_on_a_line_a_model_or_another_word(pairs: list[tuple[int, int]]) -> None:
    nodes = [figures.Node(str(i), f"model-{i}", i, "broke 1 %") for i in range(12)]
    ways = dict.fromkeys((str(min(p)), str(max(p))) for p in pairs if p[0] != p[1])
    edges = [figures.DrawnEdge(a, b, "worse", ("W1", "W2", "W3"), 0.5) for a, b in ways]
    root = ElementTree.fromstring(figures.graph(nodes, edges, "words"))
    texts = [e for e in root.iter("text") if e.text in ("W1", "W2", "W3")]
    spans = sorted((float(e.attrib["x"]), float(e.attrib["y"])) for e in texts)
    assert len(spans) == 3 * len(ways)
    for (x, y), (next_x, next_y) in pairwise(spans):
        assert x != next_x or next_y - y >= 12  # a line of words is 12 pixels high
    straight = [
        (float(x), float(y))
        for e in root.iter("path")
        for y, x in re.findall(r" ([\d.]+)H([\d.]+)", e.attrib["d"])
    ]
    for x, y in spans:  # the straight ends of edges: under the first word, above the others
        assert all(not y - 9 < at < y + 2 for end, at in straight if 0 <= end - x <= 150)
    for left, top, w, h in boxes(ElementTree.tostring(root, encoding="unicode")):
        assert all(not (left <= x <= left + w and top <= y <= top + h) for x, y in spans)


@pytest.mark.parametrize(("n_levels", "limit"), [(2, 600), (3, 800)])
def test_a_lineage_of_three_levels_fits_a_small_screen(n_levels: int, limit: int) -> None:
    nodes = [figures.Node(str(i), f"model-{i}", i, "broke 1 %", 0.01) for i in range(n_levels)]
    edges = [
        figures.DrawnEdge(str(i), str(i + 1), "same", ("lora", "not worse")) for i in range(n_levels - 1)
    ]
    root = ElementTree.fromstring(figures.graph(nodes, edges, "words"))
    assert float(root.attrib["width"]) <= limit


def test_a_round_trip_is_drawn_and_ends() -> None:
    nodes = [figures.Node(name, name, i, "") for i, name in enumerate("ab")]
    edges = [figures.DrawnEdge("a", "b", "same", ()), figures.DrawnEdge("b", "a", "same", ())]
    ElementTree.fromstring(figures.graph(nodes, edges, "words"))


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_name_in_the_lineage_is_only_a_name(name: str) -> None:
    nodes = [figures.Node("a", name, 0, name), figures.Node("b", name, 1, "")]
    root = ElementTree.fromstring(figures.graph(nodes, [figures.DrawnEdge("a", "b", "same", (name,))], name))
    assert {element.tag for element in root.iter()} <= {"svg", "rect", "text", "path"}
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on")]


def test_a_long_name_is_broken_at_a_joint() -> None:
    assert figures._wrapped("qwen2.5-coder-0.5b-instruct-lora-gsm8k", 22) == [
        "qwen2.5-coder-0.5b-",
        "instruct-lora-gsm8k",
    ]
    assert figures._wrapped("short", 22) == ["short"]
