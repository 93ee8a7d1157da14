"""A study as one HTML file that works offline, prints, and can be shared.

Promises: no request and no script (the content policy forbids both), and only its own style. Text of models
is only ever text between tags. The same study gives the same page. The file is written atomically.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from itertools import starmap
from pathlib import Path

import jinja2
from markupsafe import Markup

from heredity.core import files
from heredity.core.sanitize import label, shown
from heredity.core.sections import StackedCounts, TextTable
from heredity.core.version import __version__
from heredity.study import advice, aggregate, figures, importers, wording
from heredity.study.estimates import Estimates
from heredity.study.figures import CurvePoint, CurveSeries, curve, span_of
from heredity.study.findings.protocols import sections
from heredity.study.importers import agentdojo
from heredity.study.report._rows import draw, pieces, ranges_words
from heredity.study.report._view import View
from heredity.study.turns import page_environment, role_word, turns, with_tokens

_FOLDER = Path(__file__).parent


def _curve_figure(table: TextTable, estimates: Estimates) -> Markup:
    """The curves of a section's table as SVG."""
    lines, by_model = [], table.figure.by_model if table.figure is not None else {}
    for order, card in enumerate(estimates.models):
        shares = {k: share for k, each in by_model.get(card.id, {}).items() if (share := span_of(each))}
        if shares:
            lines.append(CurveSeries(order, tuple(starmap(CurvePoint, shares.items()))))
    return curve(lines, f"{table.title}; the table next to it has the numbers")


def _counts_bar(counts: StackedCounts) -> Markup:
    """The counts as parts of one bar."""
    parts = [figures.BarSegment(*each) for each in counts.by_kind.items()]
    return figures.stack(parts, wording.cell_words(counts))


_FUNCTIONS = {  # words, counts and figures that the template uses by name
    "attack_name": wording.attack_name,
    "advice_rule": advice.RULE,
    "against_parents": advice.is_of_edges,
    "amount": advice.amount,
    "asked_attacks": wording.asked_attacks,
    "axis": figures.axis,
    "bare": wording.bare,
    "cost_words": advice.cost_words,
    "curve_figure": _curve_figure,
    "counted": wording.counted,
    "declared_lines": wording.declared_lines,
    "failed": wording.failed,
    "interval": wording.interval,
    "counts_bar": _counts_bar,
    "min_n": advice.MIN_N,
    "p_words": wording.p_words,
    "percent": wording.percent,
    "plural": wording.plural,
    "points": wording.points,
    "points_interval": wording.points_interval,
    "reach_labels": wording.reach_labels,
    "severity_words": wording.severity_words,
    "size_words": wording.size_words,
    "role_word": role_word,
    "scope_name": wording.scope_name,
    "scope_names": wording.SCOPE_NAMES,
    "retention_words": wording.retention_words,
    "unsigned": wording.unsigned,
    "turns": turns,
    "version": __version__,
    "with_tokens": with_tokens,
    "account_lines": wording.account_lines,
    "badges": wording.BADGES,
    "marked": pieces,
    "ranges_words": ranges_words,
    "recommendation_words": advice.recommendation_words,
    "remedy": advice.remedy,
    "standings": advice.standings,
    "technique_title": wording.title,
    "threat_links": advice.threat_links,
}


def write(folder: Path, out: Path, with_text: bool = True, is_full: bool = False) -> Path:
    """Write the report of the study in `folder` to `out`, and return `out`.

    Without text: no prompt, probe or answer is in the page, only counts, ids and names. In a full page
    nothing is folded, so that all of it prints.
    Raises UsageError if the folder has no estimates yet, NotComparable if its parts do not belong together.
    """
    files.write_atomic(out, render(folder, with_text, is_full).encode())
    return out


def render(folder: Path, with_text: bool = True, is_full: bool = False) -> str:
    """The page itself."""
    study = aggregate.read_study(folder)
    names = [card.name for card in study.estimates.techniques]
    samples = draw(folder, study.plan, study.estimates.study, names, with_text)
    view = View(study.estimates, study.plan, samples, with_text, advice.recommendation(folder), is_full)
    style = (_FOLDER / "_style.css").read_text(encoding="utf-8")
    # The policy names the sheet by its hash, so it must be exactly the text between the tags.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    is_recorded = study.estimates.is_recorded
    return _template().render(
        view=view,
        sections=sections(study),
        agents=agentdojo.tables(folder) if is_recorded else [],
        agents_claim=agentdojo.CLAIM,
        beside=importers.judge_tables(folder, study.estimates) if is_recorded else [],
        style=Markup(style),
        style_hash=digest,
    )


@cache
def _template() -> jinja2.Template:
    environment = page_environment(_FOLDER)
    environment.filters |= {"label": label, "shown": shown}
    environment.globals |= _FUNCTIONS
    return environment.get_template("_template.html.jinja")
