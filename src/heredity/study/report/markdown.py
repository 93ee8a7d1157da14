"""A study as a page of Markdown, for a pull request or a terminal.

Promises: the headline, rates with n and interval, comparisons and warnings. It has no text of any model or
probe. Names cannot break out of a table cell or become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from heredity.core import files
from heredity.core.sanitize import label, plural
from heredity.core.sections import (
    Badge,
    Cell,
    ModelName,
    Section,
    ShareDifference,
    StackedCounts,
    TextTable,
    TrialLink,
)
from heredity.study import advice, aggregate, importers, wording
from heredity.study.advice import cost_words
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Measure, Rate
from heredity.study.importers import agentdojo
from heredity.study.plan import ForecastRow
from heredity.study.report.html import View
from heredity.study.sections import study_sections
from heredity.study.wording import (
    attack_name,
    cell_words,
    declared_lines,
    interval,
    percent,
    uncorrected_words,
    unsigned,
)

# Only what means something inside a line; a link is made from "://" and "www." even without brackets.
_MARKUP = re.compile(r"([\\`*_\[\]<>#!|~&$@]|^[-+=]|:(?=//)|(?<=www)\.)", re.IGNORECASE)


def write(folder: Path, out: Path, with_text: bool = True) -> Path:  # noqa: ARG001 (there is never any text)
    """Write the summary of the study in `folder` to `out`, and return `out`."""
    files.write_atomic(out, render(folder).encode())
    return out


def render(folder: Path) -> str:
    """The summary itself."""
    study = aggregate.read_study(folder)
    grids = [t for section in study_sections(study) for t in section.tables if not t.summary]
    if study.estimates.is_recorded:
        grids += [*importers.judge_tables(folder, study.estimates), *agentdojo.tables(folder)]
    return (
        "\n".join(_lines(View(study.estimates, study.plan, (), False, advice.recommendation(folder)), grids))
        + "\n"
    )


def plain(text: str, limit: int = 80) -> str:
    """A name as Markdown that shows it and does nothing else."""
    return _MARKUP.sub(r"\\\1", label(text, limit))


def _lines(view: View, grids: Sequence[TextTable]) -> Iterator[str]:
    e = view.estimates
    yield f"## {plain(view.advice.sentence, 300)}\n"
    yield f"{plain(view.headline.sentence, 300)}.\n"
    yield from (f"{plain(line, 600)}\n" for line in view.headline.support)
    yield from (f"> **{plain(line, 600)}**\n" for line in view.headline.warnings)
    yield "### Breach rate\n"
    if e.counts_refusals("breach", JUDGED):
        yield "Where a judge decides, it is that of answers that do not refuse, unclear ones included.\n"
    yield from _rates(view, "breach")
    if view.has_twins:
        yield "\n### Over-refusal rate\n"
        yield from _rates(view, "over_refusal")
    if view.attacks():
        yield "\n### By attack\n"
        yield from _by_attack(view)
    for grid in grids:
        yield f"\n### {plain(grid.title, 120)}\n"
        yield from _table(grid)
    yield from _declared(view)
    yield from (f"\n{plain(line, 600)}\n" for line in wording.account_lines(view.estimates))
    yield from _decision_lines(view)
    yield (
        f"\n{percent(e.confidence)} intervals; {plural(e.n_planned, 'trial')}. Application "
        f"{plain(e.application.name)} {plain(e.application.digest, 13)}, study {plain(e.study, 13)}."
    )


def section_lines(section: Section) -> Iterator[str]:
    """A whole section: its claim, its sentences, and its tables, each after the first below its title."""
    yield f"\n## {plain(section.title, 120)}\n"
    if section.claim:
        yield f"{plain(section.claim, 2000)}\n"
    yield from (f"- {plain(line, 600)}" for line in section.sentences)
    if section.sentences and section.tables:
        yield ""
    for number, table in enumerate(section.tables):
        if number:
            yield f"\n### {plain(table.title, 120)}\n"
        if table.claim:
            yield f"{plain(table.claim, 600)}\n"
        yield from _table(table)


def _table(table: TextTable) -> Iterator[str]:
    yield from _head([_text(cell) for cell in table.head])
    yield from (_row([_text(cell) for cell in row]) for row in table.rows)


def _text(cell: Cell) -> str:
    """A cell of a section's table as Markdown."""
    if isinstance(cell, str | ModelName | TrialLink | ShareDifference | StackedCounts):
        return plain(cell_words(cell).replace("\n", ", "), 300)
    if isinstance(cell, Badge):
        return f"**{plain(cell.verdict)}**{f', {plain(cell.text, 120)}' if cell.text else ''}"
    share = f"**{percent(cell.estimate.value)}** {cell.n_counted}/{cell.estimate.n}"
    return f"{share} ({interval(cell.estimate)}){f', {plain(cell.note)}' if cell.note else ''}"


def _declared(view: View) -> Iterator[str]:
    """The declared analysis, what the plan could show, and every deviation."""
    lines, deviations = declared_lines(view.estimates), view.estimates.deviations
    if lines:
        yield "\n### Declared before the first answer\n"
        yield from (f"- {title}: {plain(words, 400)}" for title, words in lines)
        yield from _forecast(view)
    if lines or deviations:
        yield "\n### Deviations\n"
    yield from (f"- {plain(each.code)}: {plain(each.words, 400)}" for each in deviations)
    if lines and not deviations:
        yield "None: the study ran as it was declared."


def _forecast(view: View) -> Iterator[str]:
    """The forecast of the plan, computed before the first request."""
    forecast, declared = view.estimates.forecast, view.estimates.analysis
    if forecast is None or declared is None or declared.primary is None:
        return
    yield "\n### What this plan could show\n"
    yield from (f"{plain(line, 120)}\n" for line in view.forecast_lines()[:1])
    power = f"margin with {percent(forecast.power)} power"
    yield from _head(["compared", "behaviours", "worse by", "power of not worse", power])
    alike: dict[tuple[str, ...], list[ForecastRow]] = {}
    for row in forecast.rows:
        if row.between == declared.primary.between:
            kind = row.measure if row.technique not in (ALL, JUDGE_FREE, JUDGED) else row.technique
            least = "no difference" if row.detectable is None else unsigned(row.detectable)
            margin = "none" if row.margin is None else unsigned(row.margin)
            alike.setdefault((kind, f"{row.n_clusters:,}", least, f"{row.not_worse:.2f}", margin), []).append(
                row
            )
    for cells, rows in alike.items():
        one = wording.title(rows[0].technique) if len(rows) == 1 else f"Each of {len(rows)} techniques"
        is_of_twins = rows[0].measure == "over_refusal" and rows[0].technique != ALL
        yield _row([plain(one) + (", twins" if is_of_twins else ""), *cells[1:]])
    yield ""
    yield from (f"{plain(line, 120)}\n" for line in view.forecast_lines()[1:] if not line.startswith(" "))


def _rates(view: View, measure: Measure) -> Iterator[str]:
    if {JUDGE_FREE, JUDGED} & set(view.ledger(measure)):
        yield "Judge-free: a check decides. Judged: a judge decides. Both err.\n"
    yield from _head(["technique", *(plain(view.names[card.id]) for card in view.estimates.models)])
    for technique in view.ledger(measure):
        cells = [_cell(view, view.rate(card.id, technique, measure)) for card in view.estimates.models]
        title = plain(wording.title(technique))
        is_sum = technique in (ALL, JUDGE_FREE, JUDGED)
        yield _row([f"**{title}**" if is_sum else title, *cells])


def _by_attack(view: View) -> Iterator[str]:
    yield from _head(["rate, attack", *(plain(view.names[card.id]) for card in view.estimates.models)])
    for strand in view.strands():
        for attack in view.attacks_of(strand):
            models = (card.id for card in view.estimates.models)
            rates = (view.rate(model, strand.scope, strand.measure, attack) for model in models)
            cells = [_cell(view, rate) for rate in rates]
            yield _row([f"{strand.title}, {plain(attack_name(attack, view.estimates.attacks))}", *cells])


def _cell(view: View, rate: Rate | None) -> str:
    if rate is None:
        return "not asked"
    n_unsupported = view.unsupported(rate)
    estimate = rate.estimate
    words = f"**{percent(estimate.value)}** {rate.n_counted}/{estimate.n} ({interval(estimate)})"
    if rate.corrected is not None:
        refused = rate.corrected.value is None
        words += (
            f"; {uncorrected_words(rate.corrected)}"
            if refused
            else f"; corrected {percent(rate.corrected.value)}"
        )
        words += "" if refused else f" ({interval(rate.corrected)})"
    if base := view.base_words(rate):
        words += f"; {base}"
    errors = [plural(rate.n_error, "error")] if rate.n_error else []
    rest = [f"{n} {what}" for n, what in ((rate.n_unclear, "unclear"), (n_unsupported, "not supported")) if n]
    return ", ".join([words, *rest[:1], *errors, *rest[1:]])


def _decision_lines(view: View) -> Iterator[str]:
    """The recommendation by the user's costs, or how to get one."""
    yield "\n### Which model to take\n"
    yield from (
        f"{plain(line, 600)}\n" for line in advice.recommendation_words(view.recommendation, view.names)
    )
    recommendation = view.recommendation
    if recommendation is None or recommendation.note:
        return
    yield from _head(["model", "cost per 1,000 requests", "probability of being the best", "rank"])
    for row in recommendation.models:
        name = plain(view.names.get(row.model, "?"))
        rank = str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low} to {row.rank_high}"
        yield _row([name, cost_words(row), percent(row.p_best), rank])


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _row(cells)
    yield _row(["---"] * len(cells))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
