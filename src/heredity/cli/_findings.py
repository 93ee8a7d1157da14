"""A study's findings on a terminal: the breach-rate table, the comparisons, and the path of the report.

Promises: no rate without its n and interval. Techniques that need no judge come first, and are never summed
with those that a judge decides.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.text import Text

from heredity.core.records import Estimate
from heredity.core.sanitize import plain, plural
from heredity.core.sections import Cell, CountedShare, TextTable
from heredity.core.terminal import cell, line_table, out, table, wrapped
from heredity.study import wording as words
from heredity.study.advice import conclusions
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates, Measure, Rate
from heredity.study.findings.edge_verdicts import edge_verdicts, reading_words
from heredity.study.findings.protocols import RecordedStudy, sections
from heredity.study.headline import Headline, headline
from heredity.study.plan import Plan
from heredity.study.sections import decision, public_sets, study_sections
from heredity.study.storage import read_estimates

if TYPE_CHECKING:
    from heredity.lab.runner import ResultPage

_BY = {JUDGE_FREE: "checks", JUDGED: "judge"}
_RANKS = {"worse": 0, "not enough evidence": 1, "not worse": 2}
SHORT = 15  # lines of a screen of 24, below the lines of progress
_HEAD = 35  # columns of 80 beside the numbers and the verdict, for a heading that names a model


def show(estimates: Estimates, plan: Plan, folder: Path, is_full: bool = False) -> None:
    """Print the findings in fifteen lines, or all of them; the verdict and the next command come last."""
    estimates = estimates.own
    screen, summary = out(), headline(estimates)
    ending = list(_ending(estimates, plan, folder, summary, is_full))
    command = f"heredity {'study' if estimates.n_missing else 'view'} {shlex.quote(str(folder))}"
    if is_full:
        _show_all(screen, RecordedStudy(plan, estimates), summary)
    else:
        room = room_above(screen, ending, command)
        public, pairs, models = _public_lines(estimates), _pair_lines(estimates), _model_lines(estimates)
        n_public = min(len(public.rows) + 1, max(2, room - 3)) if public.rows else 0
        n_rates = min(len(models.rows) + 1, max(2, room - n_public - min(1, len(pairs.rows))))
        lines_of = (public, n_public), (pairs, room - n_public - n_rates), (models, n_rates)
        shown = [(each, *each.fitted(lines)) for each, lines in lines_of if each.rows]
        spare = room - sum(len(rows) + bool(rows) + bool(left) for _, rows, left in shown)
        for place, (each, rows, left) in enumerate(shown):
            if spare > place:  # first between the tables, then above them
                screen.print()
            show_rows(screen, each, rows, left)
        if spare > len(shown):
            screen.print()
    show_ending(screen, ending, command)


def room_above(screen: Console, ending: Sequence[tuple[str, str]], command: str) -> int:
    """The lines that are left for tables above an ending, if all is to fit."""
    n_lines = sum(len(wrapped(plain(line), screen.width).splitlines()) for line, _ in ending)
    return SHORT - n_lines - math.ceil(len(f"Next: {command}") / screen.width)


def show_ending(screen: Console, ending: Sequence[tuple[str, str]], command: str) -> None:
    """Print sentences, each with its style, and the next command last, unbroken, to be copied."""
    for line, style in ending:
        show_sentence(screen, line, style)
    screen.print(plain(f"Next: {command}"), soft_wrap=True)


def _ending(
    estimates: Estimates, plan: Plan, folder: Path, headline: Headline, is_full: bool
) -> Iterator[tuple[str, str]]:
    """The lines above the next command, each with its style."""
    if not is_full and (broken := words.broken_plugins(estimates)):
        more = f" ({len(broken) - 1} more: --full)" if len(broken) > 1 else ""
        yield f"warning: {broken[0]}{more}", "yellow"
    if not is_full:
        alerts = (each for each in sections(RecordedStudy(plan, estimates)) if each.is_alert)
        yield from ((line, "") for each in alerts for line in each.sentences[:1])
    for each in conclusions(estimates, plan):
        yield f"{each.question}: {each.answer}.", "bold"
    where = shlex.quote(str(folder))
    edges = edge_verdicts(estimates).values()
    readings = (what for edge in edges if (what := reading_words(edge, estimates.models, where)))
    yield from ((what, "") for what in islice(readings, None if is_full else 1))
    page = folder / "report.html"
    warned = f" and {plural(len(headline.warnings), 'warning')}" if headline.warnings else ""
    parts = [f"Report: {page}"] if page.exists() else []
    parts += [] if is_full else [f"all numbers{warned} here: --full"]
    if parts:
        yield words.capital("; ".join(parts)), ""


def show_page(page: ResultPage, folder: Path, copy: Path | None, is_full: bool) -> None:
    """Write the page of a finished run, also to `copy`, and print it: all, or in about fifteen lines."""
    lines = [page.caution, *((*page.sentences, *page.asides) if is_full else page.gist)]
    lines += [f"Page: {page.write(path)}" for path in (folder / page.file, copy) if path is not None]
    lines[-1] += "" if is_full else "; all sentences here: --full"
    ending, command = [(line, "") for line in lines if line], f"heredity view {shlex.quote(str(folder))}"
    screen = out()
    if is_full:
        whole = table(*page.full.head, whole=page.full.head[:1])
        for row in page.full.rows:
            whole.add_row(*map(cell, row))
        screen.print(whole)
        screen.print()
    else:
        head, rows, ranks, n_names = page.short
        short = Lines(head[0], n_names, head, rows, ranks)
        room = room_above(screen, ending, command) if ranks else len(rows) + 1
        show_rows(screen, short, *short.fitted(room))
    show_ending(screen, ending, command)


class Lines(NamedTuple):
    """A table with one line per row; those of the lowest rank stay if not all fit."""

    noun: str
    names: int  # the first columns, whose cells lose their middle if the table is too wide
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    ranks: Sequence[float]

    def fitted(self, room: int) -> tuple[Sequence[tuple[str, ...]], str]:
        """The rows of at most `room` lines with the heading, and a line about the others; "" if all fit."""
        if len(self.rows) < room:
            return self.rows, ""
        order = sorted(range(len(self.rows)), key=self.ranks.__getitem__)
        kept, others = sorted(order[: max(0, room - 2)]), order[max(0, room - 2) :]
        left = plural(len(others), f"{'more ' if kept else ''}{self.noun}")
        if self.head[-1] == "verdict":
            verdicts = Counter(self.rows[n][-1].removesuffix(" (judge)") for n in others)
            left += f": {', '.join(f'{n} {verdict}' for verdict, n in verdicts.items())}"
        return [self.rows[n] for n in kept], left


def show_rows(screen: Console, table: Lines, rows: Sequence[tuple[str, ...]], left: str = "") -> None:
    """Print rows of a table, and the line about its others."""
    if rows:
        columns = dict(zip(table.head, zip(*rows, strict=True), strict=True))
        screen.print(line_table(columns, screen.width, table.head[: table.names], last_width=19))
    if left:
        show_sentence(screen, left)


def _pair_lines(estimates: Estimates) -> Lines:
    """A line for each child against its parent, with the verdict; without children, for each pair."""
    called, edges = words.names(estimates.models), list(edge_verdicts(estimates).values())
    rows, ranks, sizes = [], list[int](), list[int]()
    for edge in edges:
        if (main := edge.main) is not None:
            points = (
                f"{words.bare(words.points(main.estimate.value))} [{words.bounds(main.estimate, '+.1f')}]"
            )
            verdict = f"{edge.word} ({edge.losses})" if edge.losses else edge.word
            rows.append((called[edge.child], called[edge.parent], points, verdict))
            ranks.append(_RANKS[edge.kind])
            sizes.append(main.estimate.n)
    main_pairs = ("breach", estimates.main_scope())
    for pair in estimates.pairs if not edges else ():
        if (pair.measure, pair.technique) == main_pairs and pair.n:
            points = (
                f"{words.bare(words.points(pair.difference.value))} [{words.bounds(pair.difference, '+.1f')}]"
            )
            is_better = pair.verdict_ba == "worse"
            ranks.append(_RANKS["worse" if is_better else pair.verdict_ab])
            rows.append((called[pair.b], called[pair.a], points, "better" if is_better else pair.verdict_ab))
            sizes.append(pair.n)
    n, parents = _of_n("points lost" if edges else "points", sizes), {row[1] for row in rows}
    if len(parents) == 1 and len(one := f"against {parents.pop()}") <= _HEAD:
        return Lines("pair", 1, (one, n, "verdict"), [(row[0], *row[2:]) for row in rows], ranks)
    return Lines("pair", 2, ("model", "against", n, "verdict"), rows, ranks)


def _points(difference: Estimate) -> str:
    return f"{words.bare(words.points(difference.value))} [{words.bounds(difference, '+.1f')}]"


def _model_lines(estimates: Estimates) -> Lines:
    """A line for each model with its breach rates by checks and by a judge, and its over-refusal."""
    scopes: list[tuple[str, str, Measure]] = [
        ("not refused, judged" if estimates.counts_refusals("breach", of) else _BY[of], of, "breach")
        for of in estimates.breach_scopes
    ]
    if any(card.n_twins for card in estimates.techniques):
        scopes.append(("over-refusal", ALL, "over_refusal"))
    called, columns, heads = words.names(estimates.models), list[list[str]](), list[str]()
    for name, scope, measure in scopes:
        rates = [words.find(estimates, card.id, scope, ALL, measure) for card in estimates.models]
        estimates_of_rates = [rate.estimate for rate in rates if rate is not None and rate.estimate.n]
        heads.append(_of_n(name, [each.n for each in estimates_of_rates]))
        columns.append([_rate(rate) for rate in rates])
    main = (words.find(estimates, c.id, estimates.main_scope(), ALL, "breach") for c in estimates.models)
    ranks = [-(rate.estimate.value or 0.0) if rate is not None else 0.0 for rate in main]
    head = ("breach rate by", *heads)
    return Lines("model", 1, head, list(zip(called.values(), *columns, strict=True)), ranks)


def _public_lines(estimates: Estimates) -> Lines:
    """By model and attack, the rates on the public sets; and the refusals of benign requests."""
    head: tuple[str, ...] = ("public sets",)
    rows = list[tuple[str, ...]]()
    for each_set in (section.tables[0] for section in public_sets(estimates)):
        columns = list(zip(*(row[2:] for row in each_set.rows), strict=True))
        sizes = [[each.estimate.n for each in column if isinstance(each, CountedShare)] for column in columns]
        head = (
            "public sets",
            *(_of_n(str(name), n) for name, n in zip(each_set.head[2:], sizes, strict=True)),
        )
        for model, what, *cells in each_set.rows:
            shares = (
                f"{words.percent(each.estimate.value)} [{words.bounds(each.estimate, '.0f')}]"
                if isinstance(each, CountedShare)
                else words.NONE
                for each in cells
            )
            rows.append((f"{words.cell_words(model)}, {what}", *shares))
    return Lines("row", 1, head, rows, [0.0] * len(rows))


def _of_n(name: str, sizes: Sequence[int]) -> str:
    """A heading with the number of trials below it: `checks, n 150`, `checks, n 141-150`."""
    if not sizes:
        return name
    return f"{name}, n {'-'.join(f'{n:,}' for n in sorted({min(sizes), max(sizes)}))}"


def _rate(rate: Rate | None) -> str:
    if rate is None or rate.estimate.value is None:
        return words.NONE
    return f"{words.percent(rate.estimate.value)} [{words.bounds(rate.estimate, '.0f')}]"


def _show_all(screen: Console, study: RecordedStudy, headline: Headline) -> None:
    """Print the pairs, the table, the sections of findings, and all that qualifies the headline."""
    estimates = study.estimates
    for section in study_sections(study):
        tables = section.tables if section.is_main and not section.sentences else ()
        if section.sentences or tables:
            screen.print()
        for line in section.sentences:
            show_sentence(screen, line)
        for each in (each for each in tables if not each.summary):
            show_table(screen, each)
    screen.print()
    # The finding stands last, but that of one model does not.
    for line in (*([f"{headline.sentence}."] if len(estimates.models) == 1 else []), *headline.support):
        show_sentence(screen, line)
    for line in headline.warnings:
        show_sentence(screen, f"warning: {line}", "yellow")
    screen.print()


def show_sentence(screen: Console, line: str, style: str = "") -> None:
    """Print a sentence. A wrapped line is indented, and no number is cut from its unit."""
    screen.print(wrapped(plain(line, lines=True), screen.width), style=style, soft_wrap=True)


def show_recommendation(folder: Path) -> None:
    """Print the recommendation by the costs in the folder, and each model's expected cost."""
    section = decision(folder, words.names(read_estimates(folder).models))
    out().print()
    for each in section.tables:
        show_table(out(), each)
    if not section.tables:
        show_sentence(out(), section.claim)


def show_table(screen: Console, shown: TextTable) -> None:
    """Print a table of a section, with its claim below. If it is too wide, a rate has two lines."""
    heads = [Text(plain(words.cell_words(head))) for head in shown.head]
    for is_narrow in (False, True):
        rows = [[_cell(value, is_narrow) for value in row] for row in shown.rows]
        columns = zip(heads, *rows, strict=True)
        if (
            sum(2 + max(len(text.plain.partition("\n")[0]) for text in each) for each in columns)
            <= screen.width
        ):
            break
    grid = table()
    for head in heads:
        grid.add_column(head, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    screen.print(grid)
    screen.print()
    if shown.claim:
        show_sentence(screen, shown.claim, "dim")


def _cell(value: Cell, is_narrow: bool) -> Text:
    if not isinstance(value, CountedShare):
        return Text(plain(words.cell_words(value), lines=True))
    share = value.estimate
    if share.value is None:
        return Text("-", style="dim")
    colour = "green" if share.value < 0.1 else "yellow" if share.value < 0.4 else "red"
    bounds = f"[{words.bounds(share, '.0f')}]".replace("[-]", "")
    text = Text(f"{words.percent(share.value):>6}", style=colour)
    text.append(f"\n{bounds:<9}" if is_narrow else f"  {bounds:>9}", "default not bold")
    text.append(f" n {share.n}", "default not bold")
    return text.append("\n" + value.note.replace("; ", "\n"), "dim") if value.note else text
