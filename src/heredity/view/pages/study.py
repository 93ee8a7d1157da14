"""One study: what it found, what only one of two models did, and every cell as it fills.

The sections of its report are a page of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from heredity.core.errors import HeredityError
from heredity.core.sections import Badge, TrialLink
from heredity.study.advice import advise
from heredity.study.estimates import ALL, JUDGED, Measure
from heredity.study.findings.protocols import RecordedStudy, sections
from heredity.study.headline import headline
from heredity.study.outcomes import is_part
from heredity.study.sections import study_sections
from heredity.study.wording import BADGES, cell_words, title
from heredity.view.pages.lineage import decided
from heredity.view.pairs import WHICH, endpoint_of, is_edge, is_guard, pairs, shared
from heredity.view.places import OpenStudy, report_of
from heredity.view.queries import Board, CellCounts, ShownRate, board_of, cells, chips, read_filters, unasked
from heredity.view.site import Asked, Page, Site

MAX_PAIRS = 12  # that are listed; a form compares any two


class MatrixCell(NamedTuple):
    """The trials of a model in a row. `cell` None: the plan asks none."""

    cell: CellCounts | None
    rate: ShownRate | None


class MatrixRow(NamedTuple):
    """A technique or a scope, with a cell for each model. query: the filter that opens its trials."""

    technique: str
    is_judge_free: bool
    query: dict[str, str]
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

    lost, gained: of a child, those of the trials that only one of the two broke which the other held.
    """

    a: int
    b: int
    is_edge: bool
    is_guard: bool
    main: SortCounts
    others: list[SortCounts]
    lost: int | None
    gained: int | None


def render(site: Site, asked: Asked) -> str:
    """The page."""
    study = site.open(asked)
    board, by_cell = board_of(study), cells(study)
    estimates = board.estimates
    made = [] if estimates is None else sections(RecordedStudy(study.plan, estimates))
    return site.html(
        "study.html.jinja", asked, study,
        progress=study.progress(),
        advice=None if estimates is None else advise(estimates, study.plan),
        finding=None if estimates is None else headline(estimates),
        chips=[] if estimates is None else chips(estimates),
        why_not=board.why_not, stopping=board.stopping,
        pairs=list(_pairs(study, board)),
        n_pairs=len(study.names) * (len(study.names) - 1) // 2,
        breaches=_total(study, board, by_cell, is_twin=False) + _rows(study, board, by_cell, is_twin=False),
        all_twins=_total(study, board, by_cell, is_twin=True),
        twins=_rows(study, board, by_cell, is_twin=True),
        unasked=unasked(study),
        alerts=[each for each in made if each.is_alert],
        n_twins=sum(cell.n_planned for cell in by_cell.values() if cell.is_twin),
        is_of_decided=endpoint_of(study.plan) == "decided_trials",
        problems=study.problems(),
        has_report=report_of(study) is not None, is_final=estimates is not None,
    )  # fmt: skip


def _pairs(study: OpenStudy, board: Board) -> Iterator[PairLine]:
    scope = board.main_scope
    kinds = [(words, query, read_filters(study, query)) for words, query in _kinds(study, board)]
    for _, (a, b) in zip(range(MAX_PAIRS), pairs(study), strict=False):
        sides = [(words, query, shared(study, board, a, b, filters)) for words, query, filters in kinds]
        main, *others = [
            SortCounts(words, query, {which: both.n(which) for which in WHICH})
            for words, query, both in sides
        ]
        edge, guard = is_edge(study, a, b), is_guard(study, a, b)
        _, lost, gained, _ = decided(board.outcomes, a, b, scope) if edge and not guard else (None,) * 4
        yield PairLine(a, b, edge, guard, main, [each for each in others if each.n], lost, gained)


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


def _total(
    study: OpenStudy, board: Board, by_cell: dict[tuple[int, int, bool], CellCounts], is_twin: bool
) -> list[MatrixRow]:
    """The trials of the verdict's scope, or all twins, as a row; none if they are of one technique."""
    scope = ALL if is_twin else board.main_scope
    wanted = [p for p in study.plan.probes if (p.kind == "benign") == is_twin and is_part(p, scope)]
    techniques = {study.techniques.index(probe.technique) for probe in wanted}
    if not scope or len(techniques) < 2:
        return []
    made = []
    for m in range(len(study.names)):
        cells = [by_cell[m, t, is_twin] for t in techniques]
        states = Counter[str]()
        for cell in cells:
            states.update(cell.states)
        total = CellCounts(m, -1, is_twin, sum(cell.n_planned for cell in cells), states)
        made.append(MatrixCell(total, board.rate(m, scope, "over_refusal" if is_twin else "breach")))
    return [MatrixRow(scope, scope != JUDGED, {} if is_twin else {"scope": scope}, made)]


def _rows(
    study: OpenStudy, board: Board, by_cell: dict[tuple[int, int, bool], CellCounts], is_twin: bool
) -> list[MatrixRow]:
    measure: Measure = "over_refusal" if is_twin else "breach"
    rows = []
    for t, technique in enumerate(study.techniques):
        made = [
            _cell(board, by_cell.get((m, t, is_twin)), technique, measure) for m in range(len(study.names))
        ]
        if any(each.cell is not None for each in made):
            query = {"technique": technique}
            rows.append(MatrixRow(technique, board.is_judge_free(technique), query, made))
    return rows


def _cell(board: Board, cell: CellCounts | None, technique: str, measure: Measure) -> MatrixCell:
    if cell is None:
        return MatrixCell(None, None)
    return MatrixCell(cell, board.rate(cell.model, technique, measure))


def render_findings(site: Site, asked: Asked) -> str:
    """The sections; a sentence if the study has no estimates yet. Raises an error of the estimates."""
    study = site.open(asked)
    estimates = study.estimates()
    if isinstance(estimates, HeredityError):
        raise estimates
    recorded = estimates and RecordedStudy(study.plan, estimates)
    return site.html(
        "findings.html.jinja", asked, study,
        sections=study_sections(recorded, study.folder) if recorded else [],
        has_estimates=estimates is not None, cell_words=cell_words, badges=BADGES,
        is_trial=lambda cell: isinstance(cell, TrialLink), is_badge=lambda cell: isinstance(cell, Badge),
    )  # fmt: skip


PAGES = (
    Page("/s/{study}", render, tab="1 Overview", is_exported=True),
    Page("/s/{study}/findings", render_findings, tab="5 Findings", is_exported=True),
)
