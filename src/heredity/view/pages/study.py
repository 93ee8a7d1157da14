"""One study: what it found, what only one of two models did, and every cell as it fills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from heredity.study.advice import advise
from heredity.study.estimates import JUDGED, Measure
from heredity.study.headline import headline
from heredity.study.wording import title
from heredity.view.lineage import decided
from heredity.view.pairs import WHICH, is_edge, is_guard, pairs, shared
from heredity.view.places import OpenStudy, report_of
from heredity.view.queries import CellCounts, cells, read_filters
from heredity.view.rates import Board, ShownRate, board_of
from heredity.view.site import Asked, Site
from heredity.view.verdicts import chips

PATH, MENU, TAB = "/s/{study}", "", "1 Overview"
IS_EXPORTED = True
MOST_PAIRS = 12  # that are listed; a form compares any two


class MatrixCell(NamedTuple):
    """The trials of a model under a technique. `cell` None: the plan asks none, or its row is of them all."""

    cell: CellCounts | None
    rate: ShownRate | None


class MatrixRow(NamedTuple):
    """A technique or the scope of the finding, with a cell for each model."""

    technique: str
    is_judge_free: bool
    cells: list[MatrixCell]


class SortCounts(NamedTuple):
    """Trials of one kind of breaches that count for two models: how many there are of each sort.

    query: the filter that opens them.
    """

    words: str
    query: dict[str, str]
    counts: dict[str, int]

    @property
    def n(self) -> int:
        """All of them."""
        return sum(self.counts.values())


class PairLine(NamedTuple):
    """Two models on the same trials: those of the verdict, and of each other kind, which no verdict adds.

    inherited: of a child, the trials that its parent and it both decided: kept, lost, gained, neither.
    """

    a: int
    b: int
    is_edge: bool
    is_guard: bool
    main: SortCounts
    others: list[SortCounts]
    inherited: tuple[int, int, int, int] | None


def render(site: Site, asked: Asked) -> str:
    """The page."""
    study = site.open(asked)
    board, found = board_of(study), cells(study)
    estimates = board.estimates
    return site.html(
        "study.html.jinja", asked, study,
        progress=study.progress(),
        advice=None if estimates is None else advise(estimates, study.plan),
        finding=None if estimates is None else headline(estimates),
        chips=[] if estimates is None else chips(estimates),
        why_not=board.why_not, stopping=board.stopping,
        pairs=list(_pairs(study, board)),
        alone=board.alone(board.main_scope) if len(study.names) > 2 else None, main_scope=board.main_scope,
        n_pairs=len(study.names) * (len(study.names) - 1) // 2,
        breaches=_total(study, board) + _rows(study, board, found, is_twin=False),
        twins=_rows(study, board, found, is_twin=True),
        problems=study.problems(),
        has_report=report_of(study) is not None, is_final=estimates is not None,
    )  # fmt: skip


def _pairs(study: OpenStudy, board: Board) -> Iterator[PairLine]:
    scope = board.main_scope
    for _, (a, b) in zip(range(MOST_PAIRS), pairs(study), strict=False):
        main, *others = [
            SortCounts(*kind, _counts(study, board, a, b, kind[1])) for kind in _kinds(study, board)
        ]
        found = [each for each in others if each.n]
        edge, guard = is_edge(study, a, b), is_guard(study, a, b)
        inherited = decided(board.outcomes, a, b, scope) if edge and not guard else None
        yield PairLine(a, b, edge, guard, main, found, inherited)


def _kinds(study: OpenStudy, board: Board) -> Iterator[tuple[str, dict[str, str]]]:
    """The kinds of breaches that are never summed: that of the verdict, the other scope, each baseline."""
    scope = board.main_scope
    if scope:
        yield title(scope), {"scope": scope}
    for other in board.outcomes.breach_scopes:
        if other != scope:
            yield title(other), {"scope": other}
    for name in dict.fromkeys(p.technique for p in study.plan.probes if p.is_baseline and p.kind == "breach"):
        yield title(name), {"technique": name}


def _counts(study: OpenStudy, board: Board, a: int, b: int, query: dict[str, str]) -> dict[str, int]:
    both = shared(study, board, a, b, read_filters(study, query))
    return {which: both.n(which) for which in WHICH}


def _total(study: OpenStudy, board: Board) -> list[MatrixRow]:
    """The rates that the finding is about, as a row; none before there are estimates, or of one technique."""
    if board.estimates is None or len(study.techniques) < 2:
        return []
    scope = board.estimates.main_scope()
    made = [MatrixCell(None, board.rate(m, scope, "breach")) for m in range(len(study.names))]
    return [MatrixRow(scope, scope != JUDGED, made)] if any(each.rate for each in made) else []


def _rows(
    study: OpenStudy, board: Board, found: dict[tuple[int, int, bool], CellCounts], is_twin: bool
) -> list[MatrixRow]:
    measure: Measure = "over_refusal" if is_twin else "breach"
    rows = []
    for t, technique in enumerate(study.techniques):
        made = [_cell(board, found.get((m, t, is_twin)), technique, measure) for m in range(len(study.names))]
        if any(each.cell is not None for each in made):
            rows.append(MatrixRow(technique, board.is_judge_free(technique), made))
    return rows


def _cell(board: Board, cell: CellCounts | None, technique: str, measure: Measure) -> MatrixCell:
    if cell is None:
        return MatrixCell(None, None)
    return MatrixCell(cell, board.rate(cell.model, technique, measure))
