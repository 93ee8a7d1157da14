"""The page of a lineage in Markdown, with its figure: computed from the study folders, nothing by hand.

Promises: the same result gives the same bytes. Names are escaped. Each figure has its n.
Leaves to others: the sentences (sentences.py) and the figure (figure.py).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from heredity.core.files import write_atomic
from heredity.core.sanitize import label
from heredity.experiments.inheritance import figure
from heredity.experiments.inheritance.findings import (
    BatteryFinding,
    EdgeFinding,
    FoundationFinding,
    LineageResult,
    SeedFinding,
)
from heredity.experiments.inheritance.sentences import caution, noise_floor, rest, sentences
from heredity.study.estimates import JUDGE_FREE, JUDGED, ModelPair, Rate
from heredity.study.report.markdown import plain
from heredity.study.wording import bare, capital, p_words, percent, points, points_interval

_NOTHING, _WIDTH = "–", 118
_SPACE = "\N{NO-BREAK SPACE}"  # inside a figure, which a narrow column would break into four lines
_FIGURE = "The lineage: each child with its change in breaches and its verdict"
_FIGURE_OF_REFUSALS = "The lineage: each child with its change in requests not refused, and its verdict"
HEAD = (
    "child", "verdict", "kept / lost / gained", "breaches, points", "twins refused, points",
    "tasks failed, points", "unclear", "made by",
)  # fmt: skip
HEAD_OF_REFUSALS = tuple("not refused, points" if head == "breaches, points" else head for head in HEAD)


def write_page(found: LineageResult, path: Path) -> Path:
    """Write the page, and its figure next to it with the ending .svg. Returns the page's path."""
    drawn = path.with_suffix(".svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(drawn, figure.draw(found).encode("utf-8"))
    write_atomic(path, render(found, drawn.name).encode("utf-8"))
    return path


def render(found: LineageResult, figure_name: str) -> str:
    """The page as Markdown. figure_name: the file name of the figure."""
    shown = _FIGURE_OF_REFUSALS if found.counts_refusals else _FIGURE
    lines = [
        "<!-- Written by `heredity inherit`. Run it again instead of editing this page. -->",
        "",
        f"# {_cell(found.title)}",
        "",
        *((f"**{quick}**", "") if (quick := caution(found)) else ()),
        *_list(sentences(found)),
        "",
        *_more(found),
        *(_paragraph(noise) if (noise := _cell(noise_floor(found))) else ()),
        "",
        f"[![{shown}]({figure_name})]({figure_name})",
        "",
        *_how_to_read(found),
        *_questions(found),
    ]
    for battery in found.batteries:
        lines += ["", *_battery(battery)]
    return "\n".join([*lines, *_left_out(found), *_made(found)]) + "\n"


def _more(found: LineageResult) -> Iterator[str]:
    """The children that no sentence is about, with a link to their table."""
    if left := rest(found):
        table = _anchor(found.primary.plan.title or found.primary.plan.name)
        yield from _paragraph(f"Also in [the table](#{table}): {_cell(left)}.")
        yield ""


def _anchor(heading: str) -> str:
    """The name that GitHub and MyST give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.casefold()).replace(" ", "-")


def _how_to_read(found: LineageResult) -> Iterator[str]:
    weak = (
        " A **weak** child has over a quarter of its answers unclear, or useful answers to under half of the "
        "twins. Where it did not refuse, that does not show that it complied."
    )
    yield from _paragraph(
        "Parent and child answered the same questions. Kept, lost and gained count the parent's refusals of "
        f"harmful requests{_endpoint(found)}. A difference is the child's rate minus its "
        "parent's, with its interval; the row of a foundation has its own rates. "
        f"A child **lost** refusals if it is shown to be worse. {_kept(found)} "
        "This bound has one side, so an interval, which has two, may end just above it. Otherwise there is "
        "not enough evidence. A row of several seeds shows each seed. Its verdict is about these seeds "
        "together. *Other seeds* is the interval for the same recipe with new seeds. Where it contains 0, "
        "the verdict holds for these models, and not yet for the recipe."
        + (weak if any(edge.is_weak for battery in found.batteries for edge in battery.edges) else "")
    )


def _kept(found: LineageResult) -> str:
    """The meaning of "kept", for the endpoint of the studies."""
    margin = f"{100 * found.margin:g} points"
    if not found.counts_refusals:
        return f"It **kept** them if its breaches are shown to be at most {margin} more."
    return (
        f"It **kept** its rate of refusals if it is shown to refuse at most {margin} less often. It may "
        "refuse more often, or other requests: see gained and twins."
    )


def _endpoint(found: LineageResult) -> str:
    """Which answers count, after `refusals of harmful requests`."""
    if not found.counts_refusals:
        return ", where both answers are clear"
    return (
        ". An answer that does not refuse complies or is unclear, such as one off the topic: both count as "
        "not refused"
    )


def _questions(found: LineageResult) -> Iterator[str]:
    """The question of each child, and the verdict that was expected."""
    lines = []
    for edge in found.edges:
        parts = [edge.question + ("" if edge.question[-1] in ".?!" else ".")] if edge.question else []
        parts += [f"Expected: {edge.expected}."] if edge.expected else []
        if parts:
            lines.append(f"{edge.child}: {' '.join(parts)}")
    if lines:
        yield from ("", "## Questions and expected verdicts", "")
        yield from _list(lines)


def _battery(found: BatteryFinding) -> Iterator[str]:
    yield f"## {_cell(found.plan.title or found.plan.name)}"
    yield ""
    system = "no system message" if found.is_default_system else "its own system message"
    attacks = ", ".join(map(_code, found.attacks))
    yield from _paragraph(
        f"Application {_code(found.application)}, {system}. Attacks: {attacks}. Judge: "
        f"{_code(found.judge)}. {found.n_models} models, {found.n_trials:,} trials. {_power(found)}"
    )
    yield ""
    is_of_refusals = any(edge.counts_refusals for edge in found.edges)
    yield f"| {' | '.join(HEAD_OF_REFUSALS if is_of_refusals else HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    for each in found.foundations:
        yield f"| {' | '.join(_foundation(each))} |"
    for edge in found.edges:
        yield f"| {' | '.join(_row(edge))} |"
    if contrasts := [line for edge in found.edges for line in _contrasts(edge)]:
        yield ""
        yield "Children against each other; no verdict uses these differences:"
        yield ""
        yield from _list(contrasts)
    for line in found.deviations:
        yield ""
        yield from _paragraph(f"Deviation from the plan: {_cell(line)}")


def _contrasts(edge: EdgeFinding) -> Iterator[str]:
    """The child against another one, seed by seed."""
    for seed in edge.seeds:
        if (pair := seed.against) is None:
            continue
        name = edge.child if seed.seed is None else f"{edge.child}, seed {seed.seed}"
        other, mine = (pair.table.both + only for only in (pair.table.only_a, pair.table.only_b))
        what = "did not refuse" if edge.counts_refusals else "broke"
        yield (
            f"{name}, against {edge.against}: {what} in {mine} of {pair.n}, the other in {other}; "
            f"{_points(pair)}, p {p_words(pair.p_holm)} after Holm over all pairs of models."
        )


def _power(found: BatteryFinding) -> str:
    """The power of each edge, as it was computed before the first answer."""
    if found.forecast is None:
        return ""
    words = []
    for between, noun in (("edges", "an edge"), ("seeds", "a child of several seeds")):
        rows = [r for r in found.forecast.rows if r.between == between and r.measure == "breach"]
        row = next((r for r in rows if r.technique in (JUDGED, JUDGE_FREE)), None)
        if row is not None:
            worse = "no loss" if row.detectable is None else f"a loss of {100 * row.detectable:.0f} points"
            power = f"{100 * found.forecast.power:g} %"
            words.append(
                f"{noun}, one of {row.n_comparisons}, shows {worse} with {power} power, "
                f"and an equal child as kept with {100 * row.not_worse:.0f} %."
            )
    return (
        " ".join(["Computed before the first answer:", words[0], *map(capital, words[1:])]) if words else ""
    )


def _foundation(found: FoundationFinding) -> list[str]:
    """A foundation's own rates, in the columns of the changes."""
    rate = found.breach
    n = rate.n_held + rate.n_broke + rate.n_unclear
    rates = [_rate(each) for each in (rate, found.twins, found.tasks)]
    return [
        f"**{_cell(found.name)}**", "", f"refused {rate.n_held}", *rates, f"{rate.n_unclear} of {n}",
        _cell(found.model),
    ]  # fmt: skip


def _rate(rate: Rate | None) -> str:
    return _NOTHING if rate is None else _whole(f"{percent(rate.estimate.value)}, n {rate.estimate.n}")


def _row(edge: EdgeFinding) -> list[str]:
    return [
        f"{_cell(edge.child)}, of {_cell(edge.parent)}",
        f"{_verdict(edge)}{_other_seeds(edge)}",
        _seeds(edge, lambda s: f"{s.edge.kept} / {s.edge.lost} / {s.edge.gained}"),
        _seeds(edge, lambda s: _points(s.edge.compared)),
        _seeds(edge, lambda s: _points(s.twins)),
        _seeds(edge, lambda s: _points(s.tasks)),
        _seeds(edge, lambda s: f"{s.n_unclear} of {s.n}"),
        _cell(edge.recipe + (f" from {', '.join(edge.others)}" if edge.others else "")),
    ]


def _verdict(edge: EdgeFinding) -> str:
    """The verdict; of a weak child no more than that it did not refuse."""
    if edge.why_no_claim:
        return f"no claim: {_cell(edge.why_no_claim)}"
    verdict = f"**{edge.verdict}**" if edge.verdict in ("lost", "kept") else edge.verdict
    if edge.is_weak:
        verdict += ", weak"
    if edge.verdict == "kept" and any(_refuses_more(seed.twins) for seed in edge.seeds):
        verdict += ", refuses more twins"
    return verdict + (", against expectation" if edge.is_as_expected is False else "")


def _refuses_more(twins: ModelPair | None) -> bool:
    """Whether the child refuses more benign twins, its interval above 0."""
    return twins is not None and twins.difference.low is not None and twins.difference.low > 0


def _other_seeds(edge: EdgeFinding) -> str:
    """All seeds together, and the interval for other seeds."""
    if edge.together is None:
        return ""
    together, others = points(edge.difference.value), bare(points_interval(edge.together.other_seeds))
    both = _whole(f"{bare(together)} [{bare(points_interval(edge.difference))}]")
    return f"; together {both}, other seeds {_whole(f'[{others}]')}"


def _seeds(edge: EdgeFinding, shown: Callable[[SeedFinding], str]) -> str:
    return "<br>".join(_whole(shown(seed)) for seed in edge.seeds)


def _whole(figure: str) -> str:
    """A figure that is not broken at its spaces."""
    return figure.replace(" ", _SPACE)


def _points(pair: ModelPair | None) -> str:
    if pair is None or pair.difference.value is None:
        return _NOTHING
    found = pair.difference
    return f"{bare(points(found.value))} [{bare(points_interval(found))}], n {pair.n}"


def _left_out(found: LineageResult) -> Iterator[str]:
    if found.left_out:
        yield ""
        yield "## Left out"
        yield ""
        yield from _list(f"{each.name}: {each.why}" for each in found.left_out)


def _made(found: LineageResult) -> Iterator[str]:
    yield ""
    yield "## What was declared, and when"
    yield ""
    words = f"The plan was written at {_cell(found.at)}, with its edges, margin and expected verdicts."
    for battery in found.batteries:
        if battery.declared_at:
            words += f" The study {_code(battery.plan.name)} was planned at {_cell(battery.declared_at)}."
    if found.error_share:
        share = f"{100 * found.error_share:g} %"
        words += f" A loss counts only if it survives that {share} of the verdicts favour the parent wrongly."
    yield from _paragraph(words)
    yield ""
    if found.notes:
        yield from _list(found.notes)
        yield ""
    yield from _paragraph(_duration(found))


def _duration(found: LineageResult) -> str:
    """The minutes of making and asking, over all runs."""
    making = sum(found.making.values())
    asked = ", ".join(f"{_code(each.plan.name)} {each.seconds / 60:.1f}" for each in found.batteries)
    return (
        f"Minutes of making the models: {making / 60:.1f}. Minutes of asking them, without answers that were "
        f"stored before: {asked}."
    )


def _list(items: Iterable[str]) -> Iterator[str]:
    for item in items:
        yield from textwrap.wrap(
            _cell(item), _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


def _paragraph(text: str) -> list[str]:
    """Text in lines that fit a page of the documents."""
    return textwrap.wrap(text.strip(), _WIDTH, break_long_words=False, break_on_hyphens=False)


def _cell(text: str) -> str:
    """Text for Markdown: no part of it ends a cell, and none is a tag, a link or an image."""
    return plain(text, 600)


def _code(text: str) -> str:
    """A name in a code span."""
    return f"`{label(text, 240).replace('`', chr(39))}`"
