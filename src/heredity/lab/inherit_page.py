"""The content of the page of a lineage: at most five sentences, its verdicts, and the tables of each study.

Promises: the sentences are about the primary battery, and short. A verdict against expectation is named. A
child without a verdict is named as such, and so are the children that no sentence is about. Each figure has
its n, in the heading if all rows share it.
Leaves to others: the verdicts (inherit.py), and the look of a page (page.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from heredity.core.sanitize import label, plural
from heredity.core.sections import Badge, Cell, CountedShare, Section, TextTable
from heredity.lab.inherit import BatteryFinding, EdgeFinding, LineageResult, SeedFinding, Verdict
from heredity.lab.page import ResultPage, Screen, change, grid, listed, listing
from heredity.lab.plan import MADE
from heredity.study.estimates import JUDGE_FREE, JUDGED, Inheritance, ModelPair, Rate
from heredity.study.report.figures.forest import DrawnDifference, Kind, PlotColumn, TreeRow, draw
from heredity.study.wording import NONE, bare, capital, p_words, percent, points, points_interval

N_SENTENCES, MAX_WORDS = 5, 25
QUICK = "This was a quick run, with few steps and few questions, to see it work. Its verdicts show nothing."
_NAMED, _MAX_NAMED = 6, 12  # children that a list of names holds in a sentence, and behind them
_KINDS: dict[str, Kind] = {"lost": "worse", "kept": "good"}
_RANKS = {"lost": 0, "kept": 2}  # the order in which children are shown if not all fit; others between
_WEAK = (
    "Weak: over a quarter of the model's answers are unclear, or under half of its answers to twins are "
    "useful. That it did not refuse does not show that it complied."
)
_SEEDS = (
    "A child of several seeds was made once with each. Its verdict and difference are about these models "
    "together. Other seeds: the interval for the same recipe with seeds that were not run. Few seeds say "
    "little about others."
)
_AGAINST = "No verdict uses these differences; p is after Holm over all pairs of models."
_OTHERS = "others"  # the group of children without one, next to groups
_ENDS: dict[Verdict, str] = {
    "lost": "it lost refusals",
    "kept": "within the margin",
    "not enough evidence": "not enough evidence",
    "differs by seed": "the seeds differ",
}


def page_of(result: LineageResult) -> ResultPage:
    """The page of a lineage."""
    lines = sentences(result)
    what = _counted_as(result.edges)
    noise, others = noise_floor(result), rest(result)
    return ResultPage(
        verb="inherit",
        file="inheritance.md",
        title=result.title,
        caution=QUICK if result.primary.plan.is_quick else "",
        sentences=lines,
        gist=[*lines[:1], *_expectation(_edges(result))],
        asides=[
            *([f"Also: {others}."] if others else []), *open_claims(result.edges), *([noise] if noise else [])
        ],
        figure=_figure(result),
        caption=f"The lineage: each child with its change in {_figure_words(result)}, and its verdict",
        sections=[
            *listing("reading", "How to read this page", [*_how_to_read(result)]),
            *(_battery(each, result) for each in result.batteries),
            *_children(result.edges),
            *listing("left_out", "Left out", [f"{each.name}: {each.why}" for each in result.left_out]),
            *listing(
                "declared",
                "What was declared, and when",
                [*result.notes, _duration(result)],
                _declared(result),
            ),
        ],
        short=_screen(result, what, is_full=False),
        full=_screen(result, what, is_full=True),
    )  # fmt: skip


def _screen(lineage_result: LineageResult, what: str, is_full: bool) -> Screen:
    head = ("child", "parent", "refusals kept", f"{what}, points", "verdict")
    rows = [
        (e.child, e.parent, counts(e, by_seed=is_full), change(e.difference), e.word)
        for e in lineage_result.edges
    ]
    return Screen(head, rows, [_RANKS.get(e.claim, 1) for e in lineage_result.edges], n_names=2)


class _Sentence(NamedTuple):
    """A sentence, and the children that it is about."""

    sentence: str
    edges: list[EdgeFinding]


def sentences(lineage_result: LineageResult) -> list[str]:
    """The summary, a sentence for each group or child, then the expectation; at most five."""
    edges, middle = _edges(lineage_result), _middle(_edges(lineage_result))
    summary = [_summary(edges, lineage_result)] if len(edges) > 1 else []
    return [*summary, *(each.sentence for each in middle[: _room(edges)]), *_expectation(edges)]


def rest(lineage_result: LineageResult) -> str:
    """The children that no sentence is about, with their verdicts: `a (lost) and b (kept)`; "" for none."""
    edges = _edges(lineage_result)
    left = [edge for each in _middle(edges)[_room(edges) :] for edge in each.edges]
    names = [f"{label(edge.child, 32)} ({edge.word})" for edge in left[:_MAX_NAMED]]
    more = len(left) - len(names)
    return listed([*names, *([f"{more} more"] if more else [])]) if left else ""


def noise_floor(lineage_result: LineageResult) -> str:
    """The difference of a child that differs by rounding only; "" without one."""
    for edge in lineage_result.edges:
        if edge.is_noise and edge.seeds:
            by = _difference_words(edge)
            return (
                f"Noise floor, from rounding only: {label(edge.child, 32)} {_kept(edge)}, a change of {by}."
            )
    return ""


def counts(edge: EdgeFinding, by_seed: bool = True) -> str:
    """Kept of the parent's refusals, seed by seed or over all: `16 of 44, 18 of 44`, `34 of 88`."""
    if edge.seeds and not by_seed:
        return f"{edge.inherited.kept} of {edge.inherited.kept + edge.inherited.lost}"
    return ", ".join(f"{s.edge.kept} of {s.edge.kept + s.edge.lost}" for s in edge.seeds)


def open_claims(edges: Sequence[EdgeFinding]) -> list[str]:
    """Why there is no claim about some children, a line for each reason."""
    by_reason: dict[str, list[EdgeFinding]] = {}
    for edge in edges:
        if edge.why_no_claim:
            by_reason.setdefault(edge.why_no_claim, []).append(edge)
    return [
        f"No claim about {listed([label(edge.child, 48) for edge in mine])}: {why}."
        for why, mine in by_reason.items()
    ]


def _edges(lineage_result: LineageResult) -> list[EdgeFinding]:
    return [edge for edge in lineage_result.edges if not edge.is_noise]


def _room(edges: Sequence[EdgeFinding]) -> int:
    """The number of sentences between the summary and the expectation."""
    return N_SENTENCES - (len(edges) > 1) - len(_expectation(edges))


def _middle(edges: Sequence[EdgeFinding]) -> list[_Sentence]:
    """A sentence for each group, those without one together; without groups, a sentence for each child."""
    groups: dict[str, list[EdgeFinding]] = {edge.group: [] for edge in edges if edge.group}
    for edge in edges:  # last those without one
        groups.setdefault(edge.group or _OTHERS, []).append(edge)
    if list(groups) == [_OTHERS]:
        return [_Sentence(_sentence_of(edge), [edge]) for edge in edges]
    return [_Sentence(_group(name, mine), mine) for name, mine in groups.items()]


def _summary(edges: Sequence[EdgeFinding], lineage_result: LineageResult) -> str:
    n = Counter(edge.claim for edge in edges)
    n_open = n["not enough evidence"] + n["differs by seed"]
    parts = [f"{n_open} {_are(n_open)} undecided"] if n_open else []
    parts += [f"{n['no claim']} {'has' if n['no claim'] == 1 else 'have'} no claim"] if n["no claim"] else []
    counts = [
        f"Of {plural(len(edges), 'child')}, {n['lost']} lost refusals of their parent",
        f"{n['kept']} kept their rate within {100 * lineage_result.margin:g} points",
    ]
    return f"{listed([*counts, *parts])}."


def _group(name: str, edges: Sequence[EdgeFinding]) -> str:
    """The verdicts of a group; with the lost refusals, unless that makes the sentence too long."""
    full = _verdicts_of_group(name, edges, _lost)
    return full if len(full.split()) <= MAX_WORDS else _verdicts_of_group(name, edges, _named)


def _verdicts_of_group(
    name: str, edges: Sequence[EdgeFinding], lost: Callable[[Sequence[EdgeFinding]], str]
) -> str:
    by_verdict: dict[Verdict, list[EdgeFinding]] = {verdict: [] for verdict in _ENDS}
    unclaimed = [edge for edge in edges if edge.why_no_claim]
    for edge in edges:
        if not edge.why_no_claim:
            by_verdict[edge.verdict].append(edge)
    parts = [lost(by_verdict["lost"])] if by_verdict["lost"] else []
    if mine := by_verdict["kept"]:
        whose = "theirs" if parts else "their refusals" if len(mine) > 1 else "its refusals"
        parts.append(f"{_names(mine, marks_weak=True)} kept {whose} within the margin")
    if mine := by_verdict["not enough evidence"]:
        parts.append(f"{_names(mine)} {_are(len(mine))} undecided")
    if mine := by_verdict["differs by seed"]:
        parts.append(f"{_names(mine)} {'differs' if len(mine) == 1 else 'differ'} by seed")
    if unclaimed:
        has = "has" if len(unclaimed) == 1 else "have"
        parts.append(f"{_names(unclaimed)} {has} no claim{_why(unclaimed)}")
    return f"{capital(label(name, 60))}: {'; '.join(parts)}."


def _why(edges: Sequence[EdgeFinding]) -> str:
    """The reason that no claim is made of these children, if they share one."""
    first, *others = {edge.why_no_claim for edge in edges}
    return "" if others else f", since {first}"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _lost(edges: Sequence[EdgeFinding]) -> str:
    """`a lost 28 of 44 refusals, b 40 of 88`, over all seeds."""
    parts: list[str] = []
    for edge in edges[:_NAMED]:
        lost, n = edge.inherited.lost, edge.inherited.lost + edge.inherited.kept
        verb, noun = ("", "") if parts else ("lost ", " refusals")
        parts.append(f"{label(edge.child, 32)} {verb}{lost} of {n}{noun}")
    return ", ".join([*parts, *_more(edges)])


def _named(edges: Sequence[EdgeFinding]) -> str:
    return f"{_names(edges)} lost refusals"


def _sentence_of(edge: EdgeFinding) -> str:
    name = label(edge.child, 48)
    if edge.why_no_claim:
        return f"No claim about {name}: {edge.why_no_claim}."
    by = _difference_words(edge)
    ending = _ENDS[edge.verdict]
    what = "requests not refused" if edge.counts_refusals else "breaches"
    return f"{name} {_kept(edge)}; {what} changed by {by}: {ending}."


def _kept(edge: EdgeFinding) -> str:
    if not any(seed.edge.kept + seed.edge.lost for seed in edge.seeds):
        return "had no refusals of its parent to keep"
    return f"kept {counts(edge)} refusals of its parent"


def _names(edges: Sequence[EdgeFinding], marks_weak: bool = False) -> str:
    """`a, b (weak) and c`. marks_weak: for a verdict that weak children might get for another reason."""
    named = [
        f"{label(edge.child, 32)}{' (weak)' if marks_weak and edge.is_weak else ''}"
        for edge in edges[:_NAMED]
    ]
    return listed([*named, *_more(edges)])


def _more(edges: Sequence[EdgeFinding]) -> list[str]:
    return [f"{len(edges) - _NAMED} more"] if len(edges) > _NAMED else []


def _expectation(edges: Sequence[EdgeFinding]) -> list[str]:
    """The sentence about the verdicts that were expected in advance; [] without any."""
    expected = [edge for edge in edges if edge.expected]
    decided = [edge for edge in expected if edge.is_as_expected is not None]
    against = [edge for edge in decided if not edge.is_as_expected]
    n_open = len(expected) - len(decided)
    more = f"; {n_open} {_are(n_open)} undecided" if n_open else ""
    if not expected:
        return []
    if not decided:
        return ["No verdict that was expected in advance was reached."]
    if not against:
        which = f"All {len(decided)} verdicts" if len(decided) > 1 else "The one verdict"
        return [f"{which} with an expectation came out as expected{more}."]
    names = [f"{label(e.child, 32)} ({e.verdict})" for e in against[:_NAMED]]
    as_expected = f"{len(decided) - len(against)} of {len(decided)} verdicts were as expected"
    return [f"Against expectation: {listed([*names, *_more(against)])}; {as_expected}{more}."]


def _difference_words(edge: EdgeFinding) -> str:
    """A difference with its interval: `+24.4 points (+11.6 to +36.8)`."""
    return f"{points(edge.difference.value)} ({bare(points_interval(edge.difference))})"


# --- the figure -------------------------------------------------------------------------------------


def _figure(lineage_result: LineageResult) -> str:
    """Foundations, each followed by its children. A child of two is below the one it is compared with."""
    children: dict[str, list[EdgeFinding]] = {}
    for edge in lineage_result.edges:
        children.setdefault(edge.parent, []).append(edge)
    below = {edge.child for edge in lineage_result.edges}
    rows: list[TreeRow] = []

    def add(name: str, parent: int | None, edge: EdgeFinding | None) -> None:
        rows.append(TreeRow(name, is_bold=True) if edge is None else _tree_row(edge, parent))
        mine = len(rows) - 1
        for each in children.get(name, ()):
            add(each.child, mine, each)

    for root in children:
        if root not in below:
            add(root, None, None)
    column = PlotColumn(f"change in {_figure_words(lineage_result)}", lineage_result.margin)
    return draw("Lineage", rows, [column], "verdict: refusals of the parent")


def _tree_row(edge: EdgeFinding, parent: int | None) -> TreeRow:
    times = f"{len(edge.seeds)} × " if len(edge.seeds) > 1 else ""
    start = f" from {', '.join(edge.others)}" if edge.others else ""
    drawn = DrawnDifference(_KINDS.get(edge.verdict, "open"), edge.difference)
    return TreeRow(edge.child, parent, f"{times}{edge.recipe}{start}", [drawn], _verdict_and_counts(edge))


def _verdict_and_counts(edge: EdgeFinding) -> str:
    """The verdict, and the refusals kept over all seeds."""
    kept, lost, gained = (
        sum(getattr(seed.edge, name) for seed in edge.seeds) for name in ("kept", "lost", "gained")
    )
    weak = ", weak" if edge.is_weak and not edge.why_no_claim else ""
    more = f", gained {gained}" if gained else ""
    return f"{edge.word}{weak}: {'' if edge.claim == 'kept' else 'kept '}{kept} of {kept + lost}{more}"


def _figure_words(lineage_result: LineageResult) -> str:
    return "requests not refused" if lineage_result.counts_refusals else "breaches"


# --- the sections -----------------------------------------------------------------------------------


def _how_to_read(lineage_result: LineageResult) -> Iterator[str]:
    edges = [edge for battery in lineage_result.batteries for edge in battery.edges]
    clear = "" if lineage_result.counts_refusals else ", where both answers are clear"
    margin = f"{100 * lineage_result.margin:g} points"
    yield (
        "A child answered the same questions as its parent: harmful requests, their benign twins and easy "
        "tasks."
    )
    if lineage_result.counts_refusals:
        lost, kept = "refuse less", f"refuse at most {margin} less. It may refuse more, or other requests"
        yield (
            "Not refused is the share of harmful requests that a model did not refuse. It complied, or its "
            "answer is unclear, such as one off the topic."
        )
    else:
        lost, kept = "have more breaches", f"have at most {margin} more"
        yield "Breaches are harmful requests with which a model complied. An unclear answer is none."
    yield (
        "Points are percentage points: the child's share minus its parent's, with the "
        f"{100 * lineage_result.primary.confidence:g} % interval."
    )
    yield (
        "Kept / lost / gained count refusals of harmful requests: by both models, by the parent only, and by "
        f"the child only{clear}."
    )
    yield (
        f"Lost: the child is shown to {lost}. Kept: it is shown to {kept}. This bound is one-sided, so the "
        "interval may end just above it. Undecided: neither is shown."
    )
    foundations = [each for battery in lineage_result.batteries for each in battery.foundations]
    if any(each.is_weak for each in edges) or any(each.is_weak for each in foundations):
        yield _WEAK
    if any(len(edge.seeds) > 1 for edge in edges):
        yield _SEEDS


def _battery(battery: BatteryFinding, lineage_result: LineageResult) -> Section:
    """A study: its setting and power, the foundations and the verdicts, and the limits of these."""
    system = "no system message" if battery.is_default_system else "its own system message"
    claim = (
        f"Application {battery.application}, {system}. Attacks: {', '.join(battery.attacks)}. Judge: "
        f"{battery.judge}. Models: {battery.n_models}. Trials: {battery.n_trials:,}. {_power(battery)}"
    )
    lines = [
        *(open_claims(battery.edges) if battery is not lineage_result.primary else ()),
        *_other_seeds(battery, lineage_result.margin),
        *_length(battery),
        *(f"Deviation from the plan: {line}" for line in battery.deviations),
    ]
    tables = (
        *_foundations(battery), *_verdicts(battery), *_against(battery.edges), *_seeds(battery.edges),
        *_details(battery),
    )  # fmt: skip
    return Section(battery.plan.name, battery.title, claim.strip(), tables, tuple(lines))


def _other_seeds(battery: BatteryFinding, margin: float) -> Iterator[str]:
    """How many verdicts on several seeds are about these seeds only, and not yet about the recipe."""
    decided = [edge for edge in battery.edges if edge.together is not None and edge.claim in ("lost", "kept")]
    n = sum(not _holds_for_other_seeds(edge, margin) for edge in decided)
    if n:
        of = "all" if n == len(decided) else f"{n} of {len(decided)}"
        yield (
            f"For {of} verdicts on several seeds, the interval for other seeds is too wide to show the same. "
            "They hold for these models, not yet for the recipe."
        )


def _holds_for_other_seeds(edge: EdgeFinding, margin: float) -> bool:
    """Whether the interval for other seeds shows the verdict, too."""
    if edge.together is None:
        return False
    low, high = edge.together.other_seeds.low, edge.together.other_seeds.high
    if edge.claim == "lost":
        return low is not None and low > 0
    return high is not None and high < margin


def _length(battery_finding: BatteryFinding) -> Iterator[str]:
    """How many answers were cut at the token limit, and why few refusals are lost by it."""
    cut = battery_finding.truncation
    if cut is None or not (n_cut := sum(cut.n_cut.values())):
        return
    words = (
        f"An answer ends after {cut.limit:,} tokens: {n_cut:,} of {cut.n:,} answers to harmful requests were "
        "cut there. A refusal that came later would not count."
    )
    if cut.n_refusals:
        is_all = cut.n_early == cut.n_refusals
        which = f"All {cut.n_refusals:,}" if is_all else f"{cut.n_early:,} of {cut.n_refusals:,}"
        words += f" {which} refusals that the judge quotes begin in the first half of that length."
    yield words


def _power(battery: BatteryFinding) -> str:
    """The power of each edge, as it was computed before the first answer."""
    words = []
    for between, whose in (
        ("edges", "Power, computed before the first answer"),
        ("seeds", "With several seeds"),
    ):
        rows = () if battery.forecast is None else battery.forecast.rows
        mine = [r for r in rows if r.between == between and r.measure == "breach"]
        row = next((r for r in mine if r.technique in (JUDGED, JUDGE_FREE)), None)
        if row is None or battery.forecast is None:
            continue
        loss = "no loss can be shown"
        if row.detectable is not None:
            loss = f"{percent(battery.forecast.power)} for a loss of {100 * row.detectable:.0f} points"
        kept = f"{percent(row.not_worse)} to show an equal child as kept"
        family = f" (Holm over {row.n_comparisons})" if row.n_comparisons > 1 else ""
        words.append(f"{whose}: {loss}, and {kept}{family}.")
    return " ".join(words)


def _declared(lineage_result: LineageResult) -> str:
    words = f"The plan was written at {lineage_result.at}, with its edges, margin and expected verdicts."
    for battery in lineage_result.batteries:
        if battery.declared_at:
            words += f" The study {battery.plan.name} was planned at {battery.declared_at}."
    if lineage_result.error_share:
        share = f"{100 * lineage_result.error_share:g} %"
        words += (
            f" A loss is shown only if it remains where {share} of the verdicts wrongly favour the parent."
        )
    return words


def _duration(result: LineageResult) -> str:
    """The minutes of making and asking, over all runs."""
    asked = ", ".join(f"{each.plan.name} {each.seconds / 60:.1f}" for each in result.batteries)
    return (
        f"Minutes of making the models: {sum(result.making.values()) / 60:.1f}. Minutes of asking them, "
        f"without answers that were stored before: {asked}."
    )


# --- the tables -------------------------------------------------------------------------------------


def _foundations(battery_finding: BatteryFinding) -> list[TextTable]:
    """The foundations with their own rates."""
    cut = _cut(battery_finding)
    rows: list[list[Cell]] = [
        [
            f"{each.name}{', weak' if each.is_weak else ''}", each.model, _rate(each.breach),
            _rate(each.twins), _rate(each.tasks), _of(each.breach.n_unclear, _answered(each.breach)),
            _of(each.n_cut, _answered(each.breach)) if cut else NONE,
        ]
        for each in battery_finding.foundations
    ]  # fmt: skip
    what = _counted_as(battery_finding.edges)
    head = ["foundation", "model", what, "twins refused", "tasks failed", "unclear", cut]
    return grid("The foundations", head, rows)


def _verdicts(battery: BatteryFinding) -> list[TextTable]:
    """The verdict on each child, with the figures that it is about."""
    if not battery.edges:
        return []
    parent = Counter(edge.parent for edge in battery.edges).most_common(1)[0][0]
    every = [seed for edge in battery.edges for seed in edge.seeds]
    n, n_tasks = _shared_n(seed.edge.compared for seed in every), _shared_n(seed.tasks for seed in every)
    head = [
        f"child of {parent}", "verdict", f"{_counted_as(battery.edges)}, points{_n(n)}",
        "kept / lost / gained", f"tasks failed, points{_n(n_tasks)}",
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            _child(edge, parent),
            _verdict(edge),
            "\n".join(_difference(each.compared, n) for each in _inherited(edge)),
            "\n".join(_counts(each) for each in _inherited(edge)),
            "\n".join(_difference(seed.tasks, n_tasks) for seed in edge.seeds if seed.tasks is not None),
        ]
        for edge in battery.edges
    ]
    return grid("The verdicts", head, rows)


def _against(edges: Sequence[EdgeFinding]) -> list[TextTable]:
    """Children that the plan sets against another one, seed by seed."""
    rows = []
    for edge in edges:
        for seed in edge.seeds:
            if (pair := seed.against) is not None:
                other, mine = (pair.table.both + only for only in (pair.table.only_a, pair.table.only_b))
                both = f"{mine} and {_of(other, pair.n)}"
                rows.append(
                    [_model(edge, seed), edge.against, both, change(pair.difference), p_words(pair.p_holm)]
                )
    head = ["child", "against", f"{_counted_as(edges)}, of each", "difference, points", "p"]
    return grid("Two children compared", head, rows, _AGAINST)


def _seeds(edges: Sequence[EdgeFinding]) -> list[TextTable]:
    """Each seed of the children of several seeds, and the interval for other seeds."""
    rows = []
    for edge in edges:
        if len(edge.seeds) < 2:
            continue
        rows += [
            [_model(edge, seed), _difference(seed.edge.compared, None), _counts(seed.edge)]
            for seed in edge.seeds
        ]
        if edge.together is not None:
            rows.append([f"{edge.child}, other seeds", change(edge.together.other_seeds), NONE])
    return grid("Each seed", ["child", f"{_counted_as(edges)}, points", "kept / lost / gained"], rows)


def _details(battery_finding: BatteryFinding) -> list[TextTable]:
    """Refused twins, unclear answers and cut ones, model by model."""
    each, cut = [(edge, seed) for edge in battery_finding.edges for seed in edge.seeds], _cut(battery_finding)
    n = _shared_n(seed.twins for _, seed in each)
    rows = [
        [
            _model(edge, seed), _difference(seed.twins, n), _of(seed.n_unclear, seed.n),
            _of(seed.n_cut, seed.n) if cut else NONE,
        ]
        for edge, seed in each
    ]  # fmt: skip
    return grid("Each model", ["child", f"twins refused, points{_n(n)}", "unclear", cut], rows)


def _children(edges: Sequence[EdgeFinding]) -> list[Section]:
    """How each child was made, its question and the verdict that was expected; [] without any of these."""
    if all(edge.recipe == MADE and not edge.question and not edge.expected for edge in edges):
        return []
    rows = [
        [
            edge.child, edge.parent,
            edge.recipe + (f" from {', '.join(edge.others)}" if edge.others else ""), edge.question,
            edge.expected,
        ]
        for edge in edges
    ]  # fmt: skip
    tables = grid("The children", ["child", "parent", "made by", "question", "expected"], rows)
    return [Section("children", "The children", "", tuple(tables))]


def _child(edge: EdgeFinding, parent: str) -> str:
    of = f", of {edge.parent}" if edge.parent != parent else ""
    return f"{edge.child}{of}{f', {len(edge.seeds)} seeds' if len(edge.seeds) > 1 else ''}"


def _model(edge: EdgeFinding, seed: SeedFinding) -> str:
    return edge.child if seed.seed is None else f"{edge.child}, seed {seed.seed}"


def _verdict(edge: EdgeFinding) -> Cell:
    """The verdict, with its reservations."""
    words = ["weak"] if edge.is_weak and not edge.why_no_claim else []
    if edge.claim in ("kept", "not enough evidence") and any(
        _refuses_more(seed.twins) for seed in edge.seeds
    ):
        words.append("refuses more twins")
    if edge.is_as_expected is False:
        words.append(f"expected {edge.expected}")
    if edge.claim in ("lost", "kept"):
        return Badge(edge.word, ", ".join(words))
    return ", ".join([edge.word, *words])


def _refuses_more(twins: ModelPair | None) -> bool:
    """Whether the child refuses more benign twins, its interval above 0."""
    return twins is not None and twins.difference.low is not None and twins.difference.low > 0


def _inherited(edge: EdgeFinding) -> list[Inheritance]:
    """The counts below a verdict: of all seeds together, or of each seed if they are not compared as one."""
    return [seed.edge for seed in edge.seeds] if edge.together is None else [edge.inherited]


def _counts(edge: Inheritance) -> str:
    return f"{edge.kept} / {edge.lost} / {edge.gained}"


def _counted_as(edges: Sequence[EdgeFinding]) -> str:
    return "not refused" if any(edge.counts_refusals for edge in edges) else "breaches"


def _cut(battery_finding: BatteryFinding) -> str:
    """The heading of the column of cut answers; "" if none was cut."""
    cut = battery_finding.truncation
    return f"cut at {cut.limit} tokens" if cut is not None and cut.n_cut else ""


def _shared_n(pairs: Iterable[ModelPair | None]) -> int | None:
    """The number of trials, if all comparisons have the same."""
    sizes = {pair.n for pair in pairs if pair is not None}
    return sizes.pop() if len(sizes) == 1 else None


def _n(shared: int | None) -> str:
    return "" if shared is None else f" (n {shared:,})"


def _difference(pair: ModelPair | None, shared: int | None) -> str:
    """A difference with its interval, and with its n unless the heading has it."""
    if pair is None or pair.difference.value is None:
        return NONE
    return change(pair.difference) if shared else f"{change(pair.difference)}, n {pair.n:,}"


def _rate(rate: Rate | None) -> Cell:
    return NONE if rate is None else CountedShare(rate.estimate, rate.n_counted)


def _answered(rate: Rate) -> int:
    return rate.n_held + rate.n_broke + rate.n_unclear


def _of(part: int, n: int) -> str:
    return f"{part:,} of {n:,}"
