"""A study as a page of Markdown, for a pull request or a terminal.

Promises: the headline, rates with n and interval, comparisons and warnings. It has no text of any model or
probe. Names cannot break out of a table cell or become markup.
Leaves to others: everything else (html.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from heredity.core import files
from heredity.core.records import Estimate
from heredity.core.sanitize import label, plural
from heredity.core.sections import Cell, ModelName, TextTable, TrialLink
from heredity.study import agent_tasks, aggregate, decision, importers
from heredity.study.declared_words import declared_lines, n_planned
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Measure, ModelPair, Rate
from heredity.study.findings.protocols import sections
from heredity.study.inherited_words import inheritance_tables, seeds_tables
from heredity.study.plan import ForecastRow
from heredity.study.report._robustness import AnalysisCell
from heredity.study.report._view import View
from heredity.study.wording import (
    SCOPE_NAMES,
    attack_name,
    cost_words,
    interval,
    p_words,
    percent,
    points,
    points_interval,
    scope_name,
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
    grids = [
        *(table for section in sections(study) for table in section.tables if not table.summary),
        *inheritance_tables(study.estimates),
        *seeds_tables(study.estimates),
    ]
    if study.estimates.is_recorded:
        grids += [*importers.judge_tables(folder, study.estimates), *agent_tasks.tables(folder)]
    return (
        "\n".join(
            _lines(View(study.estimates, study.plan, (), False, decision.recommendation(folder)), grids)
        )
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
    yield from _useful_lines(view)
    if view.attacks():
        yield "\n### By attack\n"
        yield from _by_attack(view)
    yield from _technique_lines(view)
    pairs = view.pairs("breach") + view.pairs("over_refusal")
    if pairs:
        yield "\n### Model against model\n"
        yield from _pairs(view)
    yield from _multiverse_lines(view)
    yield from _variation_lines(view)
    yield from _competence_lines(view)
    yield from _panel_lines(view)
    for grid in grids:
        yield f"\n### {plain(grid.title, 120)}\n"
        yield from _head([_text(cell) for cell in grid.head])
        yield from (_row([_text(cell) for cell in row]) for row in grid.rows)
    yield from _declared(view)
    yield from (f"\n{plain(line, 600)}\n" for line in view.accounts)
    yield from _decision_lines(view)
    yield (
        f"\n{percent(e.confidence)} intervals; {plural(n_planned(e), 'trial')}. Application "
        f"{plain(e.application.name)} {plain(e.application.digest, 13)}, study {plain(e.study, 13)}."
    )


def _text(cell: Cell) -> str:
    """A cell of a section's table as Markdown."""
    if isinstance(cell, str | ModelName):
        text = cell if isinstance(cell, str) else cell.name
        return plain(text.replace("\n", ", "), 120)
    if isinstance(cell, TrialLink):
        return str(cell.trial)
    share = f"**{percent(cell.estimate.value)}** {cell.n_counted}/{cell.estimate.n}"
    return f"{share} ({interval(cell.estimate)}){f', {plain(cell.note)}' if cell.note else ''}"


def _declared(view: View) -> Iterator[str]:
    """The declared analysis, what the plan could show, and every deviation."""
    lines, found = declared_lines(view.estimates), view.estimates.deviations
    if lines:
        yield "\n### Declared before the first answer\n"
        yield from (f"- {title}: {plain(words, 400)}" for title, words in lines)
        yield from _forecast(view)
    if lines or found:
        yield "\n### Deviations\n"
    yield from (f"- {plain(each.code)}: {plain(each.words, 400)}" for each in found)
    if lines and not found:
        yield "None: the study ran as it was declared."


def _forecast(view: View) -> Iterator[str]:
    """The forecast of the plan, computed before the first request."""
    found, declared = view.estimates.forecast, view.estimates.analysis
    if found is None or declared is None or declared.primary is None:
        return
    yield "\n### What this plan could show\n"
    yield from (f"{plain(line, 120)}\n" for line in view.forecast_lines()[:1])
    power = f"margin with {percent(found.power)} power"
    yield from _head(["compared", "behaviours", "worse by", "power of not worse", power])
    alike: dict[tuple[str, ...], list[ForecastRow]] = {}
    for row in found.rows:
        if row.between == declared.primary.between:
            alike.setdefault(_forecast_cells(row), []).append(row)
    for cells, rows in alike.items():
        one = view.title(rows[0].technique) if len(rows) == 1 else f"Each of {len(rows)} techniques"
        yield _row([plain(one) + (", twins" if _is_of_twins(rows[0]) else ""), *cells[1:]])
    yield ""
    yield from (f"{plain(line, 120)}\n" for line in view.forecast_lines()[1:] if not line.startswith(" "))


def _forecast_cells(row: ForecastRow) -> tuple[str, ...]:
    """A row of the forecast as cells, after the group that may share them: a sum is in a group of its own."""
    kind = row.measure if row.technique not in (ALL, JUDGE_FREE, JUDGED) else row.technique
    least = "no difference" if row.detectable is None else unsigned(row.detectable)
    margin = "none" if row.margin is None else unsigned(row.margin)
    return kind, f"{row.n_clusters:,}", least, f"{row.not_worse:.2f}", margin


def _is_of_twins(row: ForecastRow) -> bool:
    return row.measure == "over_refusal" and row.technique != ALL


def _rates(view: View, measure: Measure) -> Iterator[str]:
    if {JUDGE_FREE, JUDGED} & set(view.ledger(measure)):
        yield "Judge-free: a check decides. Judged: a judge decides. Both err.\n"
    yield from _head(["technique", *(plain(view.names[card.id]) for card in view.estimates.models)])
    for technique in view.ledger(measure):
        cells = [_cell(view, view.rate(card.id, technique, measure)) for card in view.estimates.models]
        title = plain(view.title(technique))
        is_sum = technique in (ALL, JUDGE_FREE, JUDGED)
        yield _row([f"**{title}**" if is_sum else title, *cells])


def _useful_lines(view: View) -> Iterator[str]:
    """The share of benign twins that each model answered usefully."""
    rows = view.estimates.useful
    if not rows:
        return
    yield "\n### Usefully answered benign twins\n"
    yield from _head(["model", "usefully answered"])
    for row in rows:
        share = (
            f"**{percent(row.estimate.value)}** {row.n_useful}/{row.estimate.n} ({interval(row.estimate)})"
        )
        yield _row([plain(view.names.get(row.model, "?")), share])


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
    found = rate.estimate
    words = f"**{percent(found.value)}** {rate.n_counted}/{found.n} ({interval(found)})"
    if rate.corrected is not None:
        refused = rate.corrected.value is None
        words += (
            f"; {uncorrected_words(rate.corrected)}"
            if refused
            else f"; corrected {percent(rate.corrected.value)}"
        )
        words += "" if refused else f" ({interval(rate.corrected)})"
    errors = [plural(rate.n_error, "error")] if rate.n_error else []
    rest = [f"{n} {what}" for n, what in ((rate.n_unclear, "unclear"), (n_unsupported, "not supported")) if n]
    return ", ".join([words, *rest[:1], *errors, *rest[1:]])


def _pairs(view: View) -> Iterator[str]:
    yield from _head(["measure", "higher", "lower", "verdict", "difference", "p, Holm", "would have shown"])
    measures: tuple[Measure, ...] = ("breach", "over_refusal")
    for measure in measures:
        for row in view.pairs(measure):
            difference = f"{points(row.difference.value)} ({points_interval(row.difference)})"
            names = [plain(view.names.get(model, "?")) for model in (row.high, row.low)]
            numbers = [p_words(row.pair.p_holm), unsigned(row.pair.detectable)]
            yield _row(
                [
                    _kind_of(view, row.pair),
                    *names,
                    f"**{row.verdict}**" + (f", {row.aside}" if row.aside else ""),
                    difference,
                    *numbers,
                ]
            )


def _kind_of(view: View, pair: ModelPair) -> str:
    is_scope = pair.technique in (JUDGE_FREE, JUDGED)
    return scope_name(view.estimates, pair.technique) if is_scope else "over-refusal"


def _decision_lines(view: View) -> Iterator[str]:
    """The recommendation by the user's costs, or how to get one."""
    yield "\n### Which model to take\n"
    yield from (f"{plain(line, 600)}\n" for line in view.recommendation_words())
    found = view.recommendation
    if found is None or found.note:
        return
    yield from _head(["model", "cost per 1,000 requests", "probability of being the best", "rank"])
    for row in found.models:
        name = plain(view.names.get(row.model, "?"))
        rank = str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low} to {row.rank_high}"
        yield _row([name, cost_words(row), percent(row.p_best), rank])


def _technique_lines(view: View) -> Iterator[str]:
    """Shrunk rates by technique, with the prediction for a new one."""
    found, rows = view.estimates.technique_rates, view.technique_rows()
    if not rows:
        return
    yield "\n### These techniques, and a new one\n"
    yield "Each rate is drawn towards the model's other techniques (mixed-effects logit).\n"
    yield from _head(["technique", *(plain(view.names.get(each.model, "?")) for each in found)])
    for row in rows:
        cells = [
            "unknown" if c is None or c.value is None else f"{percent(c.value)} ({interval(c)})"
            for c in row.cells
        ]
        yield _row([plain(row.title), *cells])


def _competence_lines(view: View) -> Iterator[str]:
    """The share of answers that can be read, and breaches that no probe asked for."""
    e = view.estimates
    if e.competence:
        yield "\n### How many answers can be read\n"
        yield from _head(["model", "asked", "decided", "unclear, by cause", "attempted"])
    for line in e.competence:
        causes = ", ".join(f"{plain(cause)} {n}" for cause, n in line.causes.items())
        decided = f"{percent(line.estimate.value)} of {line.n} ({interval(line.estimate)})"
        unclear = f"{line.n_unclear}: {causes}" if causes else str(line.n_unclear)
        name = plain(view.names.get(line.model, "?"))
        yield _row([name, SCOPE_NAMES[line.technique], decided, unclear, str(line.n_attempted)])
    if e.unprompted:
        yield "\n### Breaches that no probe asked for\n"
        yield from _head(["model", "asked", "check", "trials with one"])
    for row in e.unprompted:
        share = f"{percent(row.estimate.value, 1)} ({interval(row.estimate, 1)})"
        found = f"{row.n_broke} of {row.estimate.n}, {share}"
        asked = "breach probes" if row.kind == "breach" else "benign twins"
        yield _row([plain(view.names.get(row.model, "?")), asked, plain(row.check), found])


def _multiverse_lines(view: View) -> Iterator[str]:
    """The headline's two models under each coding, judge and weighting."""
    for table in view.multiverse()[:1]:
        high, low = plain(view.names.get(table.high, "?")), plain(view.names.get(table.low, "?"))
        yield f"\n### {high} against {low} under other analyses\n"
        yield f"{table.summary.capitalize()}. Each verdict and p is of its cell only: without Holm's"
        yield "correction, and without the allowance for unclear answers.\n"
        yield from _head(["unclear answers", "weight", *(plain(judge) for judge in table.judges)])
        for row in table.rows:
            cells = [_analysis(cell) for cell in row.cells]
            yield _row([row.coding, row.weighting, *cells])


def _variation_lines(view: View) -> Iterator[str]:
    """Rates for other attacks like these, and how samples of one prompt vary."""
    e = view.estimates
    if e.attack_rates:
        yield "\n### For other attacks like these\n"
        yield from _head(["model", "scope", "attacks", "rate"])
        for row in e.attack_rates:
            found = f"{percent(row.estimate.value)} ({interval(row.estimate)}), n {row.estimate.n}"
            found = plain(row.estimate.note, 160) if row.estimate.value is None else found
            name, scope = plain(view.names.get(row.model, "?")), scope_name(view.estimates, row.technique)
            yield _row([name, scope, str(row.n_attacks), found])
    if e.repeats:
        yield "\n### Samples of one prompt\n"
        yield from _head(["model", "scope", "prompts", "do not agree", "standard error", "its limit"])
        for each in e.repeats:
            flips = f"{percent(each.flips.value)} ({interval(each.flips)})"
            errors = [percent(each.standard_error), percent(each.limit)]
            name = plain(view.names.get(each.model, "?"))
            yield _row(
                [name, scope_name(view.estimates, each.technique), f"{each.n_prompts:,}", flips, *errors]
            )


def _analysis(cell: AnalysisCell) -> str:
    mark = "**declared** " if cell.is_declared else ""
    found = f"{points(cell.difference.value)} ({points_interval(cell.difference)})"
    return f"{mark}{cell.verdict}, {found}, p {p_words(cell.p_value)}"


def _panel_lines(view: View) -> Iterator[str]:
    """Rates by each member of a panel, and their agreement beyond chance."""
    panel = view.estimates.panel
    if panel is None:
        return
    measures = {"breach": "breach, judged", "over_refusal": "over-refusal"}
    yield "\n### The panel's members\n"
    yield from _head(["judges", "rate", "model", "found"])
    for rate in panel.rates:
        if rate.estimate.n:
            found = f"{percent(rate.estimate.value)} ({interval(rate.estimate)}), n {rate.estimate.n}"
            name = plain(view.names.get(rate.model, "?"))
            yield _row([plain(rate.judge), measures[rate.measure], name, found])
    for pair in panel.pairs:
        if pair.kappa.n:
            names = f"{plain(pair.a)} and {plain(pair.b)}"
            yield _row([names, measures[pair.measure], "all", _kappa(pair.kappa)])


def _kappa(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return f"no kappa, n {found.n}: {plain(found.method)}"
    return f"kappa {found.value:.2f} ({found.low:.2f} to {found.high:.2f}), n {found.n}"


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _row(cells)
    yield _row(["---"] * len(cells))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
