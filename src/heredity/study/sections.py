"""The sections of a study: what was inherited, models against each other, and then those of the findings.

Promises: every format renders these sections and knows no statistic. A rate has its interval and n, and a
comparison its verdict, its difference with interval, its p-value and its counts.
Leaves to others: the numbers (estimates.py), words (wording.py), and the looks (study/report/, view/, cli/).
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.core.sanitize import label, plural
from heredity.core.sections import (
    Badge,
    Cell,
    CountedShare,
    ModelName,
    Section,
    ShareDifference,
    TextTable,
    Tree,
    TreeEdge,
    TreeNote,
)
from heredity.study.estimates import ALL, Estimates, Inheritance, ModelPair
from heredity.study.findings.edge_verdicts import QUESTIONS, edge_verdicts
from heredity.study.findings.protocols import RecordedStudy, sections
from heredity.study.wording import (
    BADGES,
    NBSP,
    detectable_words,
    difference_words,
    failed,
    find,
    names,
    p_words,
    percent,
    points,
    recipe_words,
    retention_words,
    scope_or_title,
    unsigned,
    withheld_on,
)

_INHERITED = (
    "Retention is the share of the trials that the parent held, or of the twins that it answered, which the "
    "child held too: kept / (kept + lost). Gained: held by the child only. Never: held by neither. The "
    "difference is the child's rate minus the parent's, and p is corrected over the edges only. In the "
    "figure a box is filled by the breach rate, and a bar is the retention."
)
_PAIRED = (
    "Paired: both models on the same probes, in {where}. A verdict is worse, not worse (within a margin of "
    "{margin}, the shaded band) or not enough evidence. The last column has the smallest difference that "
    "this number of trials would have shown. Rates are as judged, not corrected: errors bring the two closer "
    "together, and may differ between models."
)
_EXPLORATORY = "One technique at a time (exploratory: fewer trials each, and corrected among themselves)"
_EDGE = "of\nchild\nparent\nby\nverdict\nretention\nthe same trials\ndifference\np, Holm\nwould have shown"
_PAIR = "of\nhigher\nlower\nverdict\ndifference\nthe same trials\np\np, Holm\nwould have shown"


def study_sections(study: RecordedStudy) -> list[Section]:
    """Every section of a study, in the order in which a page shows them."""
    return [*_inherited(study.estimates), *_compared(study.estimates), *sections(study)]


def _tables(title: str, head: str, rows: list[list[Cell]], by_technique: list[list[Cell]]) -> list[TextTable]:
    """The rows, and those of one technique each as a detail."""
    parts, columns = ((rows, ""), (by_technique, _EXPLORATORY)), head.splitlines()
    return [TextTable(title, columns, part, summary) for part, summary in parts if part]


def _of(estimates: Estimates, pair: ModelPair) -> str:
    return scope_or_title(estimates, pair.technique) if pair.measure == "breach" else "over-refusal"


def _counts(**by_kind: int) -> str:
    """Four counts on two lines."""
    first, second, third, fourth = (f"{kind}{NBSP}{n}" for kind, n in by_kind.items())
    return f"{first}, {second}\n{third}, {fourth}"


# --- what was inherited -------------------------------------------------------------------------------


def _inherited(estimates: Estimates) -> Iterator[Section]:
    """The edges of the lineage, but for those to a model behind guards."""
    edges, details = (
        [each for each in of if not each.is_of_guard] for of in (estimates.edges, estimates.technique_edges)
    )
    if edges:
        title, called = "What was inherited", names(estimates.models)
        by_technique = [_edge_row(estimates, e, called) for e in details if e.compared.measure == "breach"]
        first, *more = _tables(title, _EDGE, [_edge_row(estimates, e, called) for e in edges], by_technique)
        tables = first._replace(figure=_tree(estimates)), *more
        sentences = tuple(_edge_sentence(estimates, edge, called) for edge in edges)
        yield Section("edges", title, _INHERITED, tables, sentences, is_main=True)


def _edge_row(estimates: Estimates, edge: Inheritance, called: dict[str, str]) -> list[Cell]:
    pair = edge.compared
    return [
        _of(estimates, pair), ModelName(edge.child, called[edge.child]),
        ModelName(edge.parent, called[edge.parent]), recipe_words(edge), Badge(edge.verdict, ""),
        CountedShare(edge.retention, edge.kept) if edge.retention.n else "nothing to retain",
        _counts(kept=edge.kept, lost=edge.lost, gained=edge.gained, never=edge.never),
        ShareDifference(pair.difference, pair.margin, edge.child, pair.test),
        p_words(pair.p_holm), unsigned(pair.detectable),
    ]  # fmt: skip


def _edge_sentence(estimates: Estimates, edge: Inheritance, called: dict[str, str]) -> str:
    pair = edge.compared
    could = f"would show {detectable_words(pair)}"
    return (
        f"{_of(estimates, pair)}: {called[edge.child]} of {called[edge.parent]}, {recipe_words(edge)}: "
        f"{edge.verdict}; held still {retention_words(edge)}, lost {edge.lost}, gained {edge.gained}; "
        f"difference {difference_words(pair.difference)}, p {p_words(pair.p_holm)} after Holm, "
        f"{'too few trials to show any' if pair.detectable is None else could}."
    )


def _tree(estimates: Estimates) -> Tree:
    """The lineage, each edge with its verdict."""
    scope, by_edge, notes = estimates.main_scope(), edge_verdicts(estimates), dict[str, TreeNote]()
    for card in estimates.models:
        if any(card.id in key for key in by_edge):
            rate = find(estimates, card.id, scope, ALL, "breach")
            value = rate.estimate.value if rate else None
            did = f"{failed(estimates, 'breach', scope)} {percent(value)}"
            notes[card.id] = TreeNote("" if value is None else did, value)
    mine = {(e.parent, e.child): e for e in reversed(estimates.edges)}
    main = {(e.parent, e.child): e.retention.value for e in estimates.edges if e.compared.technique == scope}
    edges = list[TreeEdge]()
    for key, row in by_edge.items():
        recipe = (mine[key].descent if key in mine else "") or row.recipe
        lines = [label(", ".join(filter(None, (recipe, row.role))), 24), row.word]
        if (number := row.main) is not None:
            lines.append(f"{QUESTIONS[number.question]} {points(number.estimate.value)}")
        edges.append(TreeEdge(*key, BADGES[row.kind], tuple(lines), main.get(key)))
    return Tree(notes, tuple(edges))


# --- models against each other ------------------------------------------------------------------------


def _compared(estimates: Estimates) -> Iterator[Section]:
    """Every two models on the same trials."""
    pairs, details = ([pair for pair in of if pair.n] for of in (estimates.pairs, estimates.technique_pairs))
    if pairs:
        title, called = "Model against model", names(estimates.models)
        by_technique = [_pair_row(estimates, pair, called) for pair in details if pair.measure == "breach"]
        rows = [_pair_row(estimates, pair, called) for pair in pairs]
        where = "applications that are not known" if estimates.is_recorded else "the same application"
        claim = _PAIRED.format(where=where, margin=unsigned(estimates.margin))
        kin = {ident for edge in estimates.edges for ident in (edge.parent, edge.child)}
        others = (pair for pair in pairs if not {pair.a, pair.b} <= kin)
        sentences = tuple(_pair_sentence(estimates, pair, called) for pair in others)
        yield Section(
            "pairs", title, claim, tuple(_tables(title, _PAIR, rows, by_technique)), sentences, True
        )


def _pair_row(estimates: Estimates, pair: ModelPair, called: dict[str, str]) -> list[Cell]:
    if (pair.difference.value or 0.0) < 0:
        pair = pair.mirrored()  # no difference is negative
    counts, aside = pair.table, withheld_on(pair, pair.b)
    if not aside and (pair.verdict_ab, pair.verdict_ba) == ("not enough evidence", "not worse"):
        aside = f"but {called[pair.a]} is not worse"
    return [
        _of(estimates, pair), ModelName(pair.b, called[pair.b]), ModelName(pair.a, called[pair.a]),
        Badge(pair.verdict_ab, aside), ShareDifference(pair.difference, pair.margin, pair.b, pair.test),
        _counts(both=counts.both, higher=counts.only_b, lower=counts.only_a, neither=counts.neither),
        p_words(pair.p_value), p_words(pair.p_holm), unsigned(pair.detectable),
    ]  # fmt: skip


def _pair_sentence(estimates: Estimates, pair: ModelPair, called: dict[str, str]) -> str:
    verdict, could = "better" if pair.verdict_ba == "worse" else pair.verdict_ab, ""
    if verdict == "not enough evidence":
        verdict = "not shown to be better or worse"
        if withheld := withheld_on(pair, pair.b) or withheld_on(pair, pair.a):
            could = f". The verdict is withheld: {withheld}"
        elif pair.detectable is not None:
            could = f"; they would have shown {detectable_words(pair)}"
    return (
        f"{_of(estimates, pair)}: {called[pair.b]} is {verdict} than {called[pair.a]}: "
        f"{difference_words(pair.difference)} on {plural(pair.n, 'shared trial')}, "
        f"p {p_words(pair.p_holm)} after Holm{could}."
    )
