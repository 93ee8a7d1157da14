"""The page of a task in Markdown, with its figure: computed from the study folders, nothing by hand.

Promises: the same result gives the same bytes. Names are escaped. Each rate has its n. A verdict that
is not shown is "not enough evidence".
Leaves to others: the numbers (findings.py) and the figure (figure.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from heredity.core.records import Estimate
from heredity.core.sanitize import plural
from heredity.core.terminal import size
from heredity.lab import adapt_figure as figure
from heredity.lab import pages
from heredity.lab.adapt import (
    AdaptResult,
    CostFinding,
    QualityFinding,
    SafetyFinding,
    WayFinding,
)
from heredity.lab.pages import (
    NOTHING,
    bullets,
    change,
    code,
    escaped,
    listed,
    paragraph,
    section,
    table,
    whole,
)
from heredity.lab.task import PLAIN, TITLES
from heredity.study.estimates import JUDGE_FREE
from heredity.study.wording import bare, interval, p_words, percent, points

QUICK = "This was a quick run, with few steps and few questions, to see it work. It shows nothing."
_SCOPES = {"all": "all questions", "seen": "seen facts", "new": "new facts"}
_SAFETY = {
    "worse": "worse", "not worse": "within the margin", "not enough evidence": "not enough evidence",
    "no claim": "no claim", "": "",
}  # fmt: skip
_SEEN = (
    "A fact is **seen** if a training row is about it, in other words than the test. **New** facts stand in "
    "the manual only: a way that does not read it can only guess."
)
_DISTILLED = (
    "The **distilled** model learned a teacher's answers to the training questions. The teacher gave them "
    "with passages of the manual."
)
_NO_CLAIM = "**No claim**: the untouched model held no more than the margin, so there is little to lose."
_CAPTION = "Quality against breach rate: each way with the intervals of both, its size the cost"


def write_page(found: AdaptResult, path: Path) -> Path:
    """Write the page and its figure (pages.write_page). Returns the page's path."""
    return pages.write_page(path, figure.draw(found), partial(render, found))


def render(found: AdaptResult, figure_name: str) -> str:
    """The page as Markdown. figure_name: the file name of the figure."""
    lines = [
        "<!-- Written by `heredity adapt`. Run it again instead of editing this page. -->",
        "",
        f"# {escaped(found.task.title)}",
        "",
        *((f"**{QUICK}**", "") if found.task.is_quick else ()),
        *listed(sentences(found)),
        "",
        f"[![{_CAPTION}]({figure_name})]({figure_name})",
        *section("## Quality", [*_quality(found)]),
        *section("## Safety", [*_safety(found)]),
        *section("## Cost", [*_cost(found)]),
        *section("## How to read this page", [*_how_to_read(found)]),
        *section("## Left out", [*listed(f"{each.name}: {each.why}" for each in found.left_out)]),
        *section("## What was declared, and when", [*_declared(found)]),
    ]
    return "\n".join(lines) + "\n"


def sentences(found: AdaptResult) -> list[str]:
    """The result of the comparison in a few sentences."""
    ways = [each for each in found.ways if each.way != PLAIN]
    said = [_by_verdict(ways, "better", "answer more questions than the untouched model")]
    if worse := [each for each in ways if each.quality[0].verdict == "worse"]:
        said.append(_by_verdict(worse, "worse", "answer fewer"))
    if unshown := [each for each in ways if each.quality[0].verdict == "not enough evidence"]:
        n = found.n_questions
        said.append(f"Of {_names(unshown)}, {n:,} questions show neither: not enough evidence.")
    said.append(_breaches(found, ways))
    return [sentence for sentence in (*said, _front(found)) if sentence]


def gist(found: AdaptResult) -> list[str]:
    """Those of the sentences that a table of the ways does not say: what was better, and the front."""
    return [*sentences(found)[:1], *filter(None, [_front(found)])]


def quality_words(found: QualityFinding | None) -> str:
    """A rate with its n: `43 % of 160`."""
    if found is None or found.rate.value is None:
        return NOTHING
    return f"{percent(found.rate.value)} of {found.rate.n:,}"


def breach_words(found: SafetyFinding | None) -> str:
    """A rate with its n and the verdict: `12 % of 96, within the margin`."""
    return ", ".join(filter(None, (rate_words(found), verdict_words(found))))


def rate_words(found: SafetyFinding | None) -> str:
    """A rate with its n: `12 % of 96`."""
    if found is None or found.rate.value is None:
        return NOTHING
    return f"{percent(found.rate.value)} of {found.rate.n:,}"


def verdict_words(found: SafetyFinding | None) -> str:
    """The verdict against the untouched model; "" without one."""
    return "" if found is None or found.rate.value is None else _SAFETY[found.verdict]


def clock(seconds: float) -> str:
    """`47 s`, `3:07`, `1:02:09`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def seconds_words(seconds: float | None) -> str:
    """Seconds of making, as a clock; a dash if they are not known."""
    if seconds is None:
        return NOTHING
    if 0 < seconds < 1:
        return "< 1 s"
    return clock(seconds) if seconds else "0"


def answer_words(cost: CostFinding) -> str:
    """Seconds an answer, to two digits."""
    return NOTHING if cost.answer_seconds is None else f"{cost.answer_seconds:.2g} s"


# --- sentences --------------------------------------------------------------------------------------


def _front(found: AdaptResult) -> str:
    front = [each for each in found.ways if each.is_on_front]
    if not front:
        return ""
    return f"By the point estimates, no way beats {_names(front)} in both quality and breaches."


def _by_verdict(ways: Sequence[WayFinding], verdict: str, what: str) -> str:
    mine = [each for each in ways if each.quality[0].verdict == verdict]
    if not mine:
        return f"No way is shown to {what}."
    each = ", ".join(f"{way.title} {bare(points(_value(way)))}" for way in mine)
    return f"Shown to {what}, in points: {each}."


def _value(way: WayFinding) -> float | None:
    difference = way.quality[0].difference
    return None if difference is None else difference.value


def _breaches(found: AdaptResult, ways: Sequence[WayFinding]) -> str:
    parts: dict[str, list[WayFinding]] = {}
    for way in ways:
        if (main := found.main(way)) is not None:
            parts.setdefault(_SAFETY[main.verdict] or "not compared", []).append(way)
    said = "; ".join(f"{word}: {_names(mine)}" for word, mine in parts.items())
    return f"Breaches against the untouched model: {said}." if said else ""


def _names(ways: Sequence[WayFinding]) -> str:
    names = [each.title for each in ways]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- tables -----------------------------------------------------------------------------------------


def _title(way: WayFinding) -> str:
    name = f"{way.title} model" if way.way == PLAIN else way.title
    seeds = f", {way.n_seeds} seeds" if way.n_seeds > 1 else ""
    return whole(f"**{name}**{seeds}" if way.is_on_front else f"{name}{seeds}")


def _quality(found: AdaptResult) -> Iterator[str]:
    seen = f", {found.n_seen} of them about seen facts" if found.n_seen else ""
    yield from paragraph(f"{found.n_questions:,} test questions{seen}. An answer is right by the rule "
                         f"{code(found.task.grading.by)}.")  # fmt: skip
    scopes = [each.scope for each in found.ways[0].quality]
    head = ["way", *(f"{_SCOPES[scope]}, right" for scope in scopes), "points", "p", "verdict", "errors"]
    rows = [
        [
            _title(way), *(whole(_with_interval(each.rate)) for each in way.quality),
            whole(change(way.quality[0].difference)), p_words(way.quality[0].p_holm),
            way.quality[0].verdict or NOTHING, str(way.quality[0].n_errors or NOTHING),
        ]
        for way in found.ways
    ]  # fmt: skip
    yield from ("", *table(head, rows))
    yield from _apart(found)


def _apart(found: AdaptResult) -> Iterator[str]:
    """The differences on seen and on new facts, each with a correction of its own."""
    rows = [
        [_title(way), _SCOPES[each.scope], whole(change(each.difference)), p_words(each.p_holm), each.verdict]
        for way in found.ways
        for each in way.quality
        if each.scope != "all" and each.difference is not None
    ]
    if rows:
        yield from ("", *table(["way", "questions", "points", "p", "verdict"], rows))


def _safety(found: AdaptResult) -> Iterator[str]:
    judge = f" The judge is {code(found.judge)}." if found.judge else ""
    n_trials = plural(found.n_trials, "trial")
    yield from paragraph(f"{n_trials} in the application {code(found.application)}.{judge}")
    scopes = [each.scope for each in found.ways[0].breaches]
    rows = []
    for way in found.ways:
        cells = [_title(way)]
        for each in (*way.breaches, *((way.over_refusal,) if way.over_refusal else ())):
            weak = ", weak" if each.is_weak else ""
            cells += [whole(_with_interval(each.rate)), whole(change(each.difference)),
                      (_SAFETY[each.verdict] or NOTHING) + weak]  # fmt: skip
        rows.append(cells)
    head = ["way"]
    for scope in scopes:
        name = "breaches" if scope == JUDGE_FREE else "judged breaches"
        head += [name, "points", "verdict"]
    head += ["twins refused", "points", "verdict"] if found.ways[0].over_refusal else []
    yield from ("", *table(head, rows))
    for line in found.deviations:
        yield from ("", *paragraph(f"Deviation from the plan: {escaped(line)}"))


def _cost(found: AdaptResult) -> Iterator[str]:
    first = f"with {plural(found.task.prices.answers, 'answer')}"
    rows = [
        [
            _title(way), seconds_words(way.cost.making_seconds), answer_words(way.cost),
            f"{way.cost.prompt_tokens:,.0f} + {way.cost.answer_tokens:,.0f}",
            whole(size(way.cost.bytes)) if way.cost.bytes else NOTHING,
            seconds_words(way.cost.seconds),
            NOTHING if way.cost.money is None else f"{way.cost.money:,.2f}",
        ]
        for way in found.ways
    ]  # fmt: skip
    head = [
        "way",
        "making",
        "an answer",
        "tokens, prompt + answer",
        "added",
        f"time {first}",
        f"money {first}",
    ]
    yield from table(head, rows)


def _with_interval(found: Estimate) -> str:
    if found.value is None:
        return NOTHING
    return f"{percent(found.value)} ({bare(interval(found))}), n {found.n:,}"


# --- words ------------------------------------------------------------------------------------------


def _how_to_read(found: AdaptResult) -> Iterator[str]:
    margin = f"{100 * found.task.margin:g} points"
    shown = {each.way for each in found.ways}
    items = [
        "Every way answers the same questions and probes in the same application, paired with the untouched "
        "model.",
        "**Points** are percentage points: the way's share minus that of the untouched model, with the "
        f"{100 * found.confidence:g} % interval. p is after Holm over the ways.",
        f"**Within the margin**: shown to have at most {margin} more. **Worse**: shown to have more. "
        "**Not enough evidence**: neither is shown.",
        "**Making** is training, indexing, and the answers of a teacher. **An answer** takes this time in "
        "the study, which asks several at once.",
        "**Bold**: on the Pareto front of quality and breaches. Where intervals overlap, the order is open.",
    ]
    if found.n_seen:
        items.insert(1, _SEEN)
    if "distilled" in shown:
        items.append(_DISTILLED)
    if any(each.verdict == "no claim" for way in found.ways for each in way.breaches):
        items.append(_NO_CLAIM)
    yield from bullets(items)


def _declared(found: AdaptResult) -> Iterator[str]:
    task = found.task
    steps = ", ".join(f"{escaped(TITLES[way])} {n:,}" for way, n in found.steps.items())
    trained = f" Steps of {task.budget.batch_size} examples: {steps}." if steps else ""
    yield from paragraph(
        f"The task was written at {escaped(found.at)}, with its questions, ways, budget and margin. The "
        f"model is {code(task.model)}.{trained}"
    )
    yield from section("", [*listed(task.notes)])
