"""A study as one HTML file that works offline, prints, and can be shared.

Promises: no request and no script (the content policy forbids both), and only its own style. Text of models
is only ever text between tags. The same study gives the same page. The file is written atomically.
Leaves to others: the numbers (study/estimates.py) and the choice of conversations (_samples.py).
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from heredity.core import files
from heredity.core.sanitize import label, shown
from heredity.core.version import __version__
from heredity.study import (
    advice,
    agent_tasks,
    aggregate,
    decision,
    declared_words,
    guard_words,
    importers,
    inherited_words,
    retrieved_words,
    templates,
    tool_words,
    wording,
)
from heredity.study.marks import with_tokens
from heredity.study.outcomes import MANNERS
from heredity.study.report import _effort, _harm
from heredity.study.report._samples import draw
from heredity.study.report._view import View
from heredity.study.report.figures import charts
from heredity.study.turns import role_word, turns

_FOLDER = Path(__file__).parent
_WORDS = {  # modules whose functions the template calls
    "declared": declared_words,
    "effort": _effort,
    "harm": _harm,
    "inherited": inherited_words,
    "retrieval": retrieved_words,
    "tools": tool_words,
}
_FUNCTIONS = {  # words, counts and figures that the template uses by name
    "attack_name": wording.attack_name,
    "advice_rule": advice.RULE,
    "against_parents": advice.is_of_edges,
    "amount": wording.amount,
    "axis": charts.axis,
    "bare": wording.bare,
    "cost_words": wording.cost_words,
    "counted": wording.counted,
    "failed": wording.failed,
    "guard_tables": guard_words.guard_tables,
    "guards_sentence": guard_words.guards_sentence,
    "interval": wording.interval,
    "manners": MANNERS,
    "min_n": advice.MIN_N,
    "p_words": wording.p_words,
    "percent": wording.percent,
    "plural": wording.plural,
    "points": wording.points,
    "points_interval": wording.points_interval,
    "reach_labels": wording.reach_labels,
    "severity_words": wording.severity_words,
    "role_word": role_word,
    "scope_name": wording.scope_name,
    "scope_names": wording.SCOPE_NAMES,
    "retention_words": wording.retention_words,
    "unsigned": wording.unsigned,
    "turns": turns,
    "version": __version__,
    "with_tokens": with_tokens,
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
    view = View(study.estimates, study.plan, samples, with_text, decision.recommendation(folder), is_full)
    style = (_FOLDER / "_style.css").read_text(encoding="utf-8")
    # The policy names the sheet by its hash, so it must be exactly the text between the tags.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    is_recorded = study.estimates.is_recorded
    return _template().render(
        view=view,
        agents=agent_tasks.tables(folder) if is_recorded else [],
        agents_claim=agent_tasks.CLAIM,
        beside=importers.judge_tables(folder, study.estimates) if is_recorded else [],
        style=Markup(style),
        style_hash=digest,
    )


@cache
def _template() -> jinja2.Template:
    environment = templates.environment(_FOLDER)
    environment.filters |= {"label": label, "shown": shown}
    environment.globals |= _WORDS | _FUNCTIONS
    return environment.get_template("_template.html.jinja")
