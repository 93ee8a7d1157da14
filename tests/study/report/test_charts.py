import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.study import figures
from tests.support.hostile_text import NASTY

SHARE = st.floats(0, 1)


@st.composite
def spans(draw: st.DrawFn) -> figures.Span:
    low, value, high = sorted((draw(SHARE), draw(SHARE), draw(SHARE)))
    return figures.Span(value, low, high)


def places(svg: str) -> list[float]:
    return [float(x) for x in re.findall(r'"(-?[\d.]+)%"', svg)]


@given(spans(), st.integers(0, 20))
def test_a_bar_stays_between_zero_and_all(span: figures.Span, order: int) -> None:
    svg = figures.interval_bar(span, order, "words")
    ElementTree.fromstring(svg)
    assert all(0 <= place <= 100 for place in places(svg))


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_a_difference_stays_on_its_scale(a: float, b: float, c: float, margin: float) -> None:
    low, value, high = sorted((a, b, c))
    span = figures.Span(value, low, high)
    svg = figures.difference_bar(span, margin, figures.reach_of([span]), 0, "words")
    ElementTree.fromstring(svg)
    assert all(0 <= place <= 100 for place in places(svg))


def test_zero_stands_in_the_middle_of_a_difference() -> None:
    svg = figures.difference_bar(figures.Span(0.0, -0.1, 0.1), 0.05, 0.2, 0, "words")
    assert '<svg x="50.00%"' in svg and 'x1="25.00%" x2="75.00%"' in svg


def test_a_rate_stands_where_it_is() -> None:
    assert '<svg x="46.00%"' in figures.interval_bar(figures.Span(0.46, 0.39, 0.53), 0, "words")


def test_what_is_not_known_is_not_drawn() -> None:
    svg = figures.interval_bar(None, 0, "no decided trials")
    assert "whisker" not in svg and "mark" not in svg and "no decided trials" in svg


def test_two_models_never_share_a_shape_before_the_thirteenth() -> None:
    assert len({figures.marker(order) for order in range(12)}) == 12


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_name_in_a_figure_is_only_a_name(name: str) -> None:
    point = figures.Point(0, name, figures.Span(0.5, 0.4, 0.6), figures.Span(0.1, 0.0, 0.2))
    root = ElementTree.fromstring(figures.plane([point], name))
    assert {element.tag for element in root.iter()} <= {"svg", "line", "text", "path"}
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on")]


def test_an_empty_bar_is_drawn_empty() -> None:
    assert "rect" not in figures.stack([figures.BarSegment("refusal", 0)], "none")


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_a_stack_fills_its_bar(counts: list[int]) -> None:
    svg = figures.stack([figures.BarSegment("refusal", n) for n in counts], "words")
    widths = [float(x) for x in re.findall(r'width="([\d.]+)%"', svg)][1:]
    assert not sum(counts) or abs(sum(widths) - 100) < 0.1
