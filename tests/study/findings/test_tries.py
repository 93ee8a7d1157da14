"""Costs and curves on the page: with their bounds, never as 0 or infinite, and drawn without a script."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from heredity.core.records import Estimate
from heredity.study import figures, storage
from heredity.study.figures import Span
from heredity.study.findings.cost import Cost, cost_lines, per_breach_words
from heredity.study.findings.tries import AsrPoint
from heredity.study.report import html, markdown
from tests.study.report.test_html import assert_is_clean
from tests.support.report_studies import make, plan


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "s"
    return make(folder, plan(n_probes=6, attacks=("direct", "best_of_n:0.4"), samples=4))


def test_the_page_has_a_cost_for_every_attack_and_model_and_stays_clean(several: Path) -> None:
    page = html.render(several)
    assert_is_clean(page)
    section = page[page.index('id="cost"') : page.index('id="decision"')]
    costs = storage.read_estimates(several).rows("cost", Cost)
    assert section.count(" broke</td>") == len(costs) == 2 * 2 * 2
    for cost in costs:
        assert per_breach_words(cost.queries_per_breach) in section


def test_the_page_draws_a_curve_for_every_attack_and_says_its_numbers(several: Path) -> None:
    page, rows = html.render(several), storage.read_estimates(several).rows("tries", AsrPoint)
    cells = {(row.technique, row.attack) for row in rows}
    assert page.count('class="plane curve"') == len(cells) == 4
    assert {row.k for row in rows} == {1, 2, 4} and 'id="tries"' in page


def test_one_sample_has_costs_and_no_curve(tmp_path: Path) -> None:
    page = html.render(make(tmp_path, plan(n_probes=3)))
    assert 'id="cost"' in page and "plane curve" not in page


def test_markdown_has_both(several: Path) -> None:
    text = markdown.render(several)
    assert "### What a breach takes" in text
    assert "### Within k tries: judge-free, best\\_of\\_n:0.4" in text
    assert re.search(r"\| 4 \| \d+ % \(", text.replace("\u00a0", " "))


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(12.5, 9.84, 171.2, 40, "m"), "12.5 (9.8 to 171)"),
        (Estimate(1234.0, 900.0, None, 40, "m"), "1,234 (900 to no bound)"),
        (Estimate(None, 41.0, None, 40, "m"), "none; at least 41"),
        (Estimate(None, None, None, 0, "m"), "unknown"),
    ],
)
def test_a_cost_is_said_with_its_bounds(estimate, said) -> None:
    assert per_breach_words(estimate) == said


def test_attackers_queries_and_money_are_said_where_there_are_any(several: Path) -> None:
    found = storage.read_estimates(several)
    cost = msgspec.structs.replace(
        found.rows("cost", Cost)[0], n_attacker_queries=7,
        attacker_queries_per_breach=Estimate(3.5, 2.0, 9.0, 40, "m"),
        n_prompt_tokens=9_000, n_tokens=1_000, tokens_per_breach=Estimate(5_000.0, 4_000.0, None, 40, "m"),
    )  # fmt: skip
    said = cost_lines(cost, found)
    assert said[2:] == ["3.5 (2.0 to 9.0) queries to the attacker"]
    priced = {cost.model: {"price": ["1,11"]}}  # a million tokens of which a tenth are answers: 2
    account = msgspec.structs.replace(found.circumstances, accounts=priced)
    known = msgspec.structs.replace(found, circumstances=account)
    assert cost_lines(cost, known)[3:] == ["0.01 (0.008 to no bound) in money"]
    changed = msgspec.structs.replace(account, accounts={cost.model: {"price": ["1,11", "2,11"]}})
    assert len(cost_lines(cost, msgspec.structs.replace(found, circumstances=changed))) == 3


def test_a_curve_rises_and_stays_in_its_picture() -> None:
    steps = tuple(
        figures.CurvePoint(k, Span(v, v / 2, (1 + v) / 2)) for k, v in ((1, 0.1), (2, 0.3), (8, 1.0))
    )
    drawn = str(figures.curve([figures.CurveSeries(0, steps), figures.CurveSeries(1, steps)], "words <b>"))
    assert "words &lt;b&gt;" in drawn and "<b>" not in drawn
    path = re.search(r'class="path" d="M([^"]+)"', drawn)
    assert path is not None
    places = [tuple(map(float, place.split())) for place in path[1].split("L")]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert all(52 <= x <= 452 and 12 <= y <= 212 for x, y in places)


def test_a_model_at_one_try_alone_is_drawn() -> None:
    line = figures.CurveSeries(0, (figures.CurvePoint(1, Span(0.5, 0.2, 0.8)),))
    assert 'class="path"' in str(figures.curve([line], "one"))
