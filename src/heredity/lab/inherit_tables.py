"""The tables of a page: foundations, verdicts, children against each other, seeds, and each model.

Promises: the first ones fit a page of 900 pixels. A column without a value is left out. Each figure has its
n, in the heading if all rows share it. Names are escaped.
Leaves to others: the verdicts (findings.py), and the text around the tables (page.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from heredity.lab.inherit import BatteryFinding, EdgeFinding, SeedFinding
from heredity.lab.pages import NOTHING, SPACE, change, escaped, table, whole
from heredity.lab.plan import MADE
from heredity.study.estimates import Inheritance, ModelPair, Rate
from heredity.study.wording import bare, p_words, percent, points_interval


def foundations(found: BatteryFinding) -> list[str]:
    """The foundations with their own rates."""
    cut = _cut(found)
    return table(
        ["foundation", "model", _change(found), "twins refused", "tasks failed", "unclear", cut],
        [
            [
                f"**{escaped(each.name)}**{', weak' if each.is_weak else ''}",
                escaped(each.model),
                _rate(each.breach),
                _rate(each.twins),
                _rate(each.tasks),
                _of(each.breach.n_unclear, _answered(each.breach)),
                _of(each.n_cut, _answered(each.breach)) if cut else NOTHING,
            ]
            for each in found.foundations
        ],
    )


def verdicts(found: BatteryFinding) -> list[str]:
    """The verdict on each child, with the figures that it is about."""
    parent = Counter(edge.parent for edge in found.edges).most_common(1)[0][0]
    every = [seed for edge in found.edges for seed in edge.seeds]
    n, n_tasks = _shared_n(seed.edge.compared for seed in every), _shared_n(seed.tasks for seed in every)
    return table(
        [
            f"child of {escaped(parent)}",
            "verdict",
            f"{_change(found)}, points{_n(n)}",
            "kept / lost / gained",
            f"tasks failed, points{_n(n_tasks)}",
        ],
        [
            [
                _child(edge, parent),
                _verdict(edge),
                _lines(_difference(each.compared, n) for each in _inherited(edge)),
                _lines(f"{each.kept} / {each.lost} / {each.gained}" for each in _inherited(edge)),
                _lines(_difference(seed.tasks, n_tasks) for seed in edge.seeds),
            ]
            for edge in found.edges
        ],
    )


def against(edges: Sequence[EdgeFinding]) -> list[str]:
    """Children that the plan sets against another one, seed by seed."""
    rows = []
    for edge in edges:
        for seed in edge.seeds:
            if (pair := seed.against) is None:
                continue
            other, mine = (pair.table.both + only for only in (pair.table.only_a, pair.table.only_b))
            rows.append(
                [
                    _model(edge, seed), escaped(edge.against), f"{mine} and {_of(other, pair.n)}",
                    _difference(pair, pair.n), p_words(pair.p_holm),
                ]
            )  # fmt: skip
    what = "not refused" if any(edge.counts_refusals for edge in edges) else "breaches"
    return table(["child", "against", f"{what}, of each", "difference, points", "p"], rows)


def seeds(edges: Sequence[EdgeFinding]) -> list[str]:
    """Each seed of the children of several seeds, and the interval for other seeds."""
    rows = []
    for edge in edges:
        if len(edge.seeds) < 2:
            continue
        for seed in edge.seeds:
            counts = f"{seed.edge.kept} / {seed.edge.lost} / {seed.edge.gained}"
            rows.append([_model(edge, seed), _difference(seed.edge.compared, None), whole(counts)])
        if edge.together is not None:
            bounds = f"[{bare(points_interval(edge.together.other_seeds))}]"
            rows.append([f"{escaped(edge.child)}, other seeds", whole(bounds), NOTHING])
    what = "not refused" if any(edge.counts_refusals for edge in edges) else "breaches"
    return table(["child", f"{what}, points", "kept / lost / gained"], rows)


def details(found: BatteryFinding) -> list[str]:
    """Refused twins, unclear answers and cut ones, model by model."""
    each, cut = [(edge, seed) for edge in found.edges for seed in edge.seeds], _cut(found)
    n = _shared_n(seed.twins for _, seed in each)
    return table(
        ["child", f"twins refused, points{_n(n)}", "unclear", cut],
        [
            [
                _model(edge, seed), _difference(seed.twins, n), _of(seed.n_unclear, seed.n),
                _of(seed.n_cut, seed.n) if cut else NOTHING,
            ]
            for edge, seed in each
        ],
    )  # fmt: skip


def children(edges: Sequence[EdgeFinding]) -> list[str]:
    """How each child was made, its question and the verdict that was expected; [] without any of these."""
    if all(edge.recipe == MADE and not edge.question and not edge.expected for edge in edges):
        return []
    return table(
        ["child", "parent", "made by", "question", "expected"],
        [
            [
                escaped(edge.child), escaped(edge.parent),
                escaped(edge.recipe + (f" from {', '.join(edge.others)}" if edge.others else "")),
                escaped(edge.question), edge.expected,
            ]
            for edge in edges
        ],
    )  # fmt: skip


# --- cells ------------------------------------------------------------------------------------------


def _child(edge: EdgeFinding, parent: str) -> str:
    words = [escaped(edge.child)]
    if edge.parent != parent:
        words.append(f"of{SPACE}{escaped(edge.parent)}")
    if len(edge.seeds) > 1:
        words.append(f"{len(edge.seeds)}{SPACE}seeds")
    return ", ".join(words)


def _model(edge: EdgeFinding, seed: SeedFinding) -> str:
    return escaped(edge.child if seed.seed is None else f"{edge.child}, seed {seed.seed}")


def _verdict(edge: EdgeFinding) -> str:
    """The verdict, with its reservations."""
    words = [f"**{edge.word}**" if edge.claim in ("lost", "kept") else edge.word]
    if edge.is_weak and not edge.why_no_claim:
        words.append("weak")
    if edge.claim in ("kept", "not enough evidence") and any(
        _refuses_more(seed.twins) for seed in edge.seeds
    ):
        words.append("refuses more twins")
    if edge.is_as_expected is False:
        words.append(f"expected {edge.expected}")
    return ", ".join(words)


def _refuses_more(twins: ModelPair | None) -> bool:
    """Whether the child refuses more benign twins, its interval above 0."""
    return twins is not None and twins.difference.low is not None and twins.difference.low > 0


def _inherited(edge: EdgeFinding) -> list[Inheritance]:
    """The counts below a verdict: of all seeds together, or of each seed if they are not compared as one."""
    return [seed.edge for seed in edge.seeds] if edge.together is None else [edge.inherited]


def _change(found: BatteryFinding) -> str:
    return "not refused" if any(edge.counts_refusals for edge in found.edges) else "breaches"


def _cut(found: BatteryFinding) -> str:
    """The heading of the column of cut answers; "" if none was cut."""
    cut = found.truncation
    return f"cut at {cut.limit} tokens" if cut is not None and cut.n_cut else ""


def _shared_n(pairs: Iterable[ModelPair | None]) -> int | None:
    """The number of trials, if all comparisons have the same."""
    found = {pair.n for pair in pairs if pair is not None}
    return found.pop() if len(found) == 1 else None


def _n(shared: int | None) -> str:
    return "" if shared is None else f"{SPACE}(n{SPACE}{shared:,})"


def _difference(pair: ModelPair | None, shared: int | None) -> str:
    """A difference with its interval, and with its n unless the heading has it."""
    if pair is None or pair.difference.value is None:
        return NOTHING
    found = change(pair.difference)
    return whole(found if shared else f"{found}, n {pair.n:,}")


def _rate(rate: Rate | None) -> str:
    return NOTHING if rate is None else whole(f"{percent(rate.estimate.value)}, n {rate.estimate.n:,}")


def _answered(rate: Rate) -> int:
    return rate.n_held + rate.n_broke + rate.n_unclear


def _of(part: int, n: int) -> str:
    return whole(f"{part:,} of {n:,}")


def _lines(figures: Iterable[str]) -> str:
    return "<br>".join(map(whole, figures))
