"""What a study found, on a terminal: the breach-rate table, the comparisons, the page with the rest.

Promises: no rate without its n and interval; techniques that need no judge come first.
Leaves to others: every number (estimates.py) and its words (report/_words.py).
"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from heredity.cli._plain import plain
from heredity.cli._terminal import out
from heredity.estimates import ALL, Estimates, Measure, Pair, Rate
from heredity.report import _words as words

_MEASURES: dict[Measure, str] = {"breach": "breach", "over_refusal": "over-refusal"}
_UNKNOWN = "not shown to be better or worse"
_CROWDED = 30  # columns a model needs for its cell to stay on one line


def show(estimates: Estimates, page: Path | None = None) -> None:
    """Print everything that fits a screen, then where the rest is."""
    screen = out()
    found = words.headline(estimates)
    screen.print()
    screen.print(breach_table(estimates, is_narrow=_is_narrow(estimates, screen.width)))
    legend = (
        f"rate [{words.percent(estimates.confidence)} interval] of n decided trials; * decided by a judge"
    )
    if any(technique.is_baseline for technique in estimates.techniques):
        legend += "; ° a capability, not in all"
    screen.print(legend, style="dim")
    screen.print()
    screen.print(plain(f"{found.sentence}."), style="bold")
    for line in found.support:
        screen.print(plain(line))
    for pair in estimates.pairs:
        screen.print()
        screen.print(_compared(estimates, pair))
    if found.warnings:
        screen.print()
    for line in found.warnings:
        screen.print(plain(f"warning: {line}"), style="yellow")
    if page is not None:
        screen.print(f"\nreport: {plain(str(page))}", soft_wrap=True)


def _compared(estimates: Estimates, pair: Pair) -> Text:
    """Who is what against whom; where nothing is shown, what these trials could have shown."""
    called = words.names(estimates.models)
    head = f"{_MEASURES[pair.measure]}: {called[pair.b]} is "
    text = Text(head).append(_verdict(pair), style="bold").append(f" than {called[pair.a]}")
    return text.append(f"\n  {_difference(pair)}")


def _difference(pair: Pair) -> str:
    if pair.difference.value is None:
        return f"no trials that both decided; {pair.difference.method}"
    said = f"{words.points(pair.difference.value)} ({words.points_interval(pair.difference)})"
    said += f" on {pair.n} shared trials, p {words.p_words(pair.p_holm)} after Holm"
    if _verdict(pair) == _UNKNOWN and pair.detectable is not None:
        said += f"; they would have shown {words.unsigned(pair.detectable)}"
    return said


def _verdict(pair: Pair) -> str:
    if pair.verdict_ba == "worse":
        return "better"
    return _UNKNOWN if pair.verdict_ab == "not enough evidence" else pair.verdict_ab


def breach_table(estimates: Estimates, is_narrow: bool = False) -> Table:
    """Technique x model, then all together, then over-refusal and what was not decided."""
    called = words.names(estimates.models)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column("breach rate", overflow="fold")
    for card in estimates.models:
        grid.add_column(Text(called[card.id]), overflow="fold")
    cards = sorted((t for t in estimates.techniques if t.n_probes), key=lambda t: not t.is_judge_free)
    for technique in cards:
        name = technique.name + ("" if technique.is_judge_free else " *") + " °" * technique.is_baseline
        grid.add_row(Text(name), *_cells(estimates, technique.name, "breach", is_narrow))
    if len(estimates.attacks) > 1:
        for attack in estimates.attacks:
            grid.add_row(Text(f"all, {attack}"), *_cells(estimates, ALL, "breach", is_narrow, attack))
    grid.add_row(Text("all"), *_cells(estimates, ALL, "breach", is_narrow), style="bold")
    if any(t.n_twins for t in estimates.techniques):
        grid.add_row(Text("over-refusal *"), *_cells(estimates, ALL, "over_refusal", is_narrow))
    if estimates.n_unclear:
        grid.add_row(Text("unclear"), *_counts(estimates, "n_unclear"), style="dim")
    if estimates.n_errors:
        grid.add_row(Text("errors"), *_counts(estimates, "n_error"), style="red")
    return grid


def _is_narrow(estimates: Estimates, width: int) -> bool:
    return 24 + _CROWDED * len(estimates.models) > width


def _cells(
    estimates: Estimates, technique: str, measure: Measure, is_narrow: bool, attack: str = ALL
) -> list[Text]:
    rates = [words.find(estimates, card.id, technique, attack, measure) for card in estimates.models]
    return [_cell(rate, "\n" if is_narrow else "  ") for rate in rates]


def _cell(rate: Rate | None, between: str) -> Text:
    if rate is None or rate.estimate.value is None:
        return Text("-", style="dim")
    found = rate.estimate
    value = words.percent(found.value)
    shown = Text(f"{value:>6}", style=_colour(rate))
    bounds = (
        "" if found.low is None or found.high is None else f"[{100 * found.low:.0f}, {100 * found.high:.0f}]"
    )
    return shown.append(f"{between}{bounds:>9} n {found.n}", style="default not bold")


def _colour(rate: Rate) -> str:
    """By the value alone; the number is what counts, colour only guides the eye."""
    value = rate.estimate.value or 0.0
    return "green" if value < 0.1 else "yellow" if value < 0.4 else "red"


def _counts(estimates: Estimates, field: str) -> list[Text]:
    """Trials of both measures, so that nothing that was asked goes unmentioned."""
    found = []
    for card in estimates.models:
        rates = [words.find(estimates, card.id, ALL, ALL, measure) for measure in ("breach", "over_refusal")]
        found.append(Text(f"{sum(getattr(rate, field) for rate in rates if rate is not None):>6}"))
    return found
