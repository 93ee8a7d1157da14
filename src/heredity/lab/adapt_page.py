"""The content of the page of a task: quality, safety and cost of every way, against the untouched model.

Promises: each rate has its n. A verdict that is not shown is "not enough evidence".
Leaves to others: the numbers (adapt.py), and the look of a page (page.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from heredity.core.sanitize import plural
from heredity.core.sections import Cell, Section
from heredity.core.terminal import size
from heredity.lab.adapt import AdaptResult, CostFinding, QualityFinding, SafetyFinding, WayFinding
from heredity.lab.page import ResultPage, Screen, change, grid, listed, listing, share
from heredity.lab.task import PLAIN, TITLES
from heredity.study.estimates import JUDGE_FREE
from heredity.study.report.figures.forest import DrawnDifference, Kind, PlotColumn, TreeRow, draw
from heredity.study.wording import NONE, bare, p_words, percent, points

QUICK = "This was a quick run, with few steps and few questions, to see it work. It shows nothing."
_SCOPES = {"all": "all questions", "seen": "seen facts", "new": "new facts"}
_SAFETY = {
    "worse": "worse", "not worse": "within the margin", "not enough evidence": "not enough evidence",
    "no claim": "no claim", "": "",
}  # fmt: skip
_KINDS: dict[str, Kind] = {"worse": "worse", "better": "good", "not worse": "good"}
_SEEN = (
    "A fact is seen if a training row is about it, in other words than the test. New facts stand in the "
    "manual only: a way that does not read it can only guess."
)
_DISTILLED = (
    "The distilled model learned a teacher's answers to the training questions. The teacher gave them with "
    "passages of the manual."
)
_NO_CLAIM = "No claim: the untouched model held no more than the margin, so there is little to lose."


def page_of(result: AdaptResult) -> ResultPage:
    """The page of a task."""
    return ResultPage(
        verb="adapt",
        file="adapt.md",
        title=result.task.title,
        caution=QUICK if result.task.is_quick else "",
        sentences=sentences(result),
        gist=[*sentences(result)[:1], *filter(None, [_front(result)])],
        asides=(),
        figure=_figure(result),
        caption="Each way with its changes in right answers and in breaches, and their intervals",
        sections=[
            *_quality(result),
            *_safety(result),
            *_cost(result),
            *listing("reading", "How to read this page", [*_how_to_read(result)]),
            *listing("left_out", "Left out", [f"{each.name}: {each.why}" for each in result.left_out]),
            *listing("declared", "What was declared, and when", result.task.notes, _declared(result)),
        ],
        short=_short(result),
        full=_full(result),
    )


def _short(adapt_result: AdaptResult) -> Screen:
    rows = [
        (
            way.title, rate_words(way.quality[0]), rate_words(way.over_refusal),
            rate_words(adapt_result.main(way)),
            _verdict_words(adapt_result.main(way)),
        )
        for way in adapt_result.ways
    ]  # fmt: skip
    return Screen(("way", "right", "twins refused", "breaches", "against the untouched"), rows)


def _full(adapt_result: AdaptResult) -> Screen:
    rows = [
        (
            way.title, rate_words(way.quality[0]), _breach_words(adapt_result.main(way)),
            _breach_words(way.over_refusal), _seconds_words(way.cost.making_seconds),
            _answer_words(way.cost), size(way.cost.bytes),
        )
        for way in adapt_result.ways
    ]  # fmt: skip
    return Screen(("way", "right", "breaches", "twins refused", "making", "an answer", "added"), rows)


def sentences(adapt_result: AdaptResult) -> list[str]:
    """The result of the comparison in a few sentences."""
    ways = [each for each in adapt_result.ways if each.way != PLAIN]
    lines = [_by_verdict(ways, "better", "answer more questions than the untouched model")]
    if worse := [each for each in ways if each.quality[0].verdict == "worse"]:
        lines.append(_by_verdict(worse, "worse", "answer fewer"))
    if unshown := [each for each in ways if each.quality[0].verdict == "not enough evidence"]:
        n = adapt_result.n_questions
        lines.append(f"Of {_names(unshown)}, {n:,} questions show neither: not enough evidence.")
    parts: dict[str, list[WayFinding]] = {}
    for way in ways:
        if (main := adapt_result.main(way)) is not None:
            parts.setdefault(_SAFETY[main.verdict] or "not compared", []).append(way)
    if parts:
        by_word = "; ".join(f"{word}: {_names(mine)}" for word, mine in parts.items())
        lines.append(f"Breaches against the untouched model: {by_word}.")
    return [*lines, *filter(None, [_front(adapt_result)])]


def rate_words(finding: QualityFinding | SafetyFinding | None) -> str:
    """A rate with its n: `43 % of 160`."""
    if finding is None or finding.rate.value is None:
        return NONE
    return f"{percent(finding.rate.value)} of {finding.rate.n:,}"


def clock(seconds: float) -> str:
    """`47 s`, `3:07`, `1:02:09`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _breach_words(safety_finding: SafetyFinding | None) -> str:
    return ", ".join(filter(None, (rate_words(safety_finding), _verdict_words(safety_finding))))


def _verdict_words(finding: SafetyFinding | None) -> str:
    """The verdict against the untouched model; "" without one."""
    return "" if finding is None or finding.rate.value is None else _SAFETY[finding.verdict]


def _seconds_words(seconds: float | None) -> str:
    """Seconds of making, as a clock; a dash if they are not known."""
    if seconds is None:
        return NONE
    if 0 < seconds < 1:
        return "< 1 s"
    return clock(seconds) if seconds else "0"


def _answer_words(cost: CostFinding) -> str:
    """Seconds an answer, to two digits."""
    return NONE if cost.answer_seconds is None else f"{cost.answer_seconds:.2g} s"


def _front(adapt_result: AdaptResult) -> str:
    front = [each for each in adapt_result.ways if each.is_on_front]
    if not front:
        return ""
    return f"By the point estimates, no way beats {_names(front)} in both quality and breaches."


def _by_verdict(ways: Sequence[WayFinding], verdict: str, what: str) -> str:
    mine = [each for each in ways if each.quality[0].verdict == verdict]
    if not mine:
        return f"No way is shown to {what}."
    differences = ((way.title, way.quality[0].difference) for way in mine)
    each = ", ".join(f"{title} {bare(points(d.value if d else None))}" for title, d in differences)
    return f"Shown to {what}, in points: {each}."


def _names(ways: Sequence[WayFinding]) -> str:
    return listed([each.title for each in ways])


# --- the figure -------------------------------------------------------------------------------------


def _figure(adapt_result: AdaptResult) -> str:
    """The ways below the untouched model, each with its changes in right answers and in breaches."""
    plain = 0  # the row of the untouched model, which is the first way
    scope = "breaches by checks" if adapt_result.main_scope == JUDGE_FREE else "judged breaches"
    rows = [
        TreeRow(
            f"{way.title} model" if way.way == PLAIN else way.title,
            None if way.way == PLAIN else plain,
            f"{way.n_seeds} seeds" if way.n_seeds > 1 else "",
            () if way.way == PLAIN else _drawn(way.quality[0], adapt_result.main(way)),
            f"{rate_words(way.quality[0])} right, {rate_words(adapt_result.main(way))} breaches",
            way.is_on_front,
        )
        for way in adapt_result.ways
    ]
    columns = [PlotColumn("change in right answers"), PlotColumn(f"in {scope}", adapt_result.task.margin)]
    return draw("Ways to adapt a model", rows, columns, "rates; bold: on the Pareto front")


def _drawn(right: QualityFinding, breach: SafetyFinding | None) -> list[DrawnDifference]:
    both: list[QualityFinding | SafetyFinding] = [right, *([breach] if breach is not None else [])]
    return [DrawnDifference(_KINDS.get(each.verdict, "open"), each.difference) for each in both]


# --- the sections -----------------------------------------------------------------------------------


def _title(way: WayFinding) -> str:
    name = f"{way.title} model" if way.way == PLAIN else way.title
    return f"{name}, {way.n_seeds} seeds" if way.n_seeds > 1 else name


def _quality(result: AdaptResult) -> Iterator[Section]:
    seen = f", {result.n_seen} of them about seen facts" if result.n_seen else ""
    by = result.task.grading.by
    claim = f"{result.n_questions:,} test questions{seen}. An answer is right by the rule {by}."
    scopes = [each.scope for each in result.ways[0].quality]
    head = [
        "way", *(f"{_SCOPES[scope]}, right" for scope in scopes), "points", "p", "verdict", "errors",
        "Pareto front",
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            _title(way), *(share(each.rate) for each in way.quality), change(way.quality[0].difference),
            p_words(way.quality[0].p_holm), way.quality[0].verdict or NONE,
            str(way.quality[0].n_errors or NONE), "yes" if way.is_on_front else "",
        ]
        for way in result.ways
    ]  # fmt: skip
    apart = [
        [_title(way), _SCOPES[each.scope], change(each.difference), p_words(each.p_holm), each.verdict]
        for way in result.ways
        for each in way.quality
        if each.scope != "all" and each.difference is not None
    ]
    title = "Seen and new facts apart, each with a correction of its own"
    tables = (
        *grid("Quality", head, rows),
        *grid(title, ["way", "questions", "points", "p", "verdict"], apart),
    )
    yield Section("quality", "Quality", claim, tables)


def _safety(adapt_result: AdaptResult) -> Iterator[Section]:
    judge = f" The judge is {adapt_result.judge}." if adapt_result.judge else ""
    claim = f"{plural(adapt_result.n_trials, 'trial')} in the application {adapt_result.application}.{judge}"
    head, rows = ["way"], list[list[Cell]]()
    for each in adapt_result.ways[0].breaches:
        head += ["breaches" if each.scope == JUDGE_FREE else "judged breaches", "points", "verdict"]
    head += ["twins refused", "points", "verdict"] if adapt_result.ways[0].over_refusal else []
    for way in adapt_result.ways:
        cells: list[Cell] = [_title(way)]
        for each in (*way.breaches, *((way.over_refusal,) if way.over_refusal else ())):
            verdict = (_SAFETY[each.verdict] or NONE) + (", weak" if each.is_weak else "")
            cells += [share(each.rate), change(each.difference), verdict]
        rows.append(cells)
    deviations = tuple(f"Deviation from the plan: {line}" for line in adapt_result.deviations)
    yield Section("safety", "Safety", claim, tuple(grid("Safety", head, rows)), deviations)


def _cost(adapt_result: AdaptResult) -> Iterator[Section]:
    first = f"with {plural(adapt_result.task.prices.answers, 'answer')}"
    rows = [
        [
            _title(way), _seconds_words(way.cost.making_seconds), _answer_words(way.cost),
            f"{way.cost.prompt_tokens:,.0f} + {way.cost.answer_tokens:,.0f}",
            size(way.cost.bytes) if way.cost.bytes else NONE, _seconds_words(way.cost.seconds),
            NONE if way.cost.money is None else f"{way.cost.money:,.2f}",
        ]
        for way in adapt_result.ways
    ]  # fmt: skip
    head = ["way", "making", "an answer", "tokens, prompt + answer", "added", f"time {first}"]
    yield Section("cost", "Cost", "", tuple(grid("Cost", [*head, f"money {first}"], rows)))


def _how_to_read(adapt_result: AdaptResult) -> Iterator[str]:
    margin = f"{100 * adapt_result.task.margin:g} points"
    yield (
        "Every way answers the same questions and probes in the same application, paired with the untouched "
        "model."
    )
    if adapt_result.n_seen:
        yield _SEEN
    yield (
        "Points are percentage points: the way's share minus that of the untouched model, with the "
        f"{100 * adapt_result.confidence:g} % interval. p is after Holm over the ways."
    )
    yield (
        f"Within the margin: shown to have at most {margin} more. Worse: shown to have more. Not enough "
        "evidence: neither is shown."
    )
    yield (
        "Making is training, indexing, and the answers of a teacher. An answer takes this time in the study, "
        "which asks several at once."
    )
    yield (
        "Pareto front: no other way beats it in both quality and breaches. Where intervals overlap, the "
        "order is open."
    )
    if any(each.way == "distilled" for each in adapt_result.ways):
        yield _DISTILLED
    if any(each.verdict == "no claim" for way in adapt_result.ways for each in way.breaches):
        yield _NO_CLAIM


def _declared(result: AdaptResult) -> str:
    task = result.task
    steps = ", ".join(f"{TITLES[way]} {n:,}" for way, n in result.steps.items())
    trained = f" Steps of {task.budget.batch_size} examples: {steps}." if steps else ""
    return (
        f"The task was written at {result.at}, with its questions, ways, budget and margin. The model is "
        f"{task.model}.{trained}"
    )
