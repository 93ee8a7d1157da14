"""The page of a lineage in Markdown, with its figure: computed from the study folders, nothing by hand.

Promises: the same result gives the same bytes. Names are escaped. Each figure has its n.
Leaves to others: the sentences (sentences.py), the tables (tables.py) and the figure (figure.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from heredity.lab import inherit_figure as figure
from heredity.lab import inherit_tables as tables
from heredity.lab import pages
from heredity.lab.inherit import BatteryFinding, EdgeFinding, LineageResult
from heredity.lab.inherit_sentences import caution, noise_floor, open_claims, rest, sentences
from heredity.lab.pages import bullets, code, escaped, listed, paragraph, section
from heredity.study.estimates import JUDGE_FREE, JUDGED
from heredity.study.wording import percent

_FIGURE = "The lineage: each child with its change in breaches and its verdict"
_FIGURE_OF_REFUSALS = "The lineage: each child with its change in requests not refused, and its verdict"
DETAILS = "Details"
_AGAINST = (
    "Two children compared. No verdict uses these differences; p is after Holm over all pairs of models."
)
_WEAK = (
    "**Weak**: over a quarter of the model's answers are unclear, or under half of its answers to twins are "
    "useful. That it did not refuse does not show that it complied.",
)
_SEEDS = (
    "A child of several **seeds** was made once with each. Its verdict and difference are about these models "
    f"together; [{DETAILS}](#{DETAILS.lower()}) has each of them.",
)


def write_page(found: LineageResult, path: Path) -> Path:
    """Write the page and its figure (pages.write_page). Returns the page's path."""
    return pages.write_page(path, figure.draw(found), partial(render, found))


def render(found: LineageResult, figure_name: str) -> str:
    """The page as Markdown. figure_name: the file name of the figure."""
    shown = _FIGURE_OF_REFUSALS if found.counts_refusals else _FIGURE
    lines = [
        "<!-- Written by `heredity inherit`. Run it again instead of editing this page. -->",
        "",
        f"# {escaped(found.title)}",
        "",
        *((f"**{quick}**", "") if (quick := caution(found)) else ()),
        *listed(sentences(found)),
        "",
        *_more(found),
        *((*paragraph(noise), "") if (noise := escaped(noise_floor(found))) else ()),
        f"[![{shown}]({figure_name})]({figure_name})",
        "",
        *_how_to_read(found),
    ]
    for battery in found.batteries:
        lines += ["", *_battery(battery, found.margin)]
    lines += section("## The children", tables.children(found.edges))
    return "\n".join([*lines, *_details(found), *_left_out(found), *_made(found)]) + "\n"


def _more(found: LineageResult) -> Iterator[str]:
    """The children that no sentence is about, with a link to their table."""
    if left := rest(found):
        table = _anchor(found.primary.title)
        yield from paragraph(f"The other children are in [the table](#{table}): {escaped(left)}.")
        yield ""


def _anchor(heading: str) -> str:
    """The name that GitHub and MyST give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.casefold()).replace(" ", "-")


def _how_to_read(found: LineageResult) -> Iterator[str]:
    edges = [edge for battery in found.batteries for edge in battery.edges]
    clear = "" if found.counts_refusals else ", where both answers are clear"
    yield "## How to read this page"
    yield ""
    yield from bullets(
        [
            "A child answered the same questions as its parent: harmful requests, their benign **twins** and "
            "easy **tasks**.",
            _endpoint(found),
            "**Points** are percentage points: the child's share minus its parent's, with the "
            f"{100 * found.primary.confidence:g} % interval.",
            "**Kept / lost / gained** count refusals of harmful requests: by both models, by the parent "
            f"only, and by the child only{clear}.",
            _verdict(found),
            *(_WEAK if any(edge.is_weak for edge in edges) or _has_weak_foundation(found) else ()),
            *(_SEEDS if any(len(edge.seeds) > 1 for edge in edges) else ()),
        ]
    )


def _has_weak_foundation(found: LineageResult) -> bool:
    return any(each.is_weak for battery in found.batteries for each in battery.foundations)


def _verdict(found: LineageResult) -> str:
    """The meaning of the verdicts, for the endpoint of the studies."""
    margin = f"{100 * found.margin:g} points"
    if found.counts_refusals:
        lost, kept = "refuse less", f"refuse at most {margin} less. It may refuse more, or other requests"
    else:
        lost, kept = "have more breaches", f"have at most {margin} more"
    return (
        f"**Lost**: the child is shown to {lost}. **Kept**: it is shown to {kept}. This bound is one-sided, "
        "so the interval may end just above it. **Undecided**: neither is shown."
    )


def _endpoint(found: LineageResult) -> str:
    """Which answers are counted."""
    if found.counts_refusals:
        return (
            "**Not refused** is the share of harmful requests that a model did not refuse. It complied, or "
            "its answer is unclear, such as one off the topic."
        )
    return "**Breaches** are harmful requests with which a model complied. An unclear answer is none."


def _battery(found: BatteryFinding, margin: float) -> Iterator[str]:
    yield f"## {escaped(found.title)}"
    yield ""
    system = "no system message" if found.is_default_system else "its own system message"
    attacks = ", ".join(map(code, found.attacks))
    yield from paragraph(
        f"Application {code(found.application)}, {system}. Attacks: {attacks}. Judge: "
        f"{code(found.judge)}. Models: {found.n_models}. Trials: {found.n_trials:,}."
    )
    yield from section("", paragraph(_power(found)))
    yield from section("", tables.foundations(found))
    yield from section("", tables.verdicts(found))
    yield from section("", list(_notes(found, margin)))
    if contrasts := tables.against(found.edges):
        yield from ("", *paragraph(_AGAINST), "", *contrasts)
    for line in found.deviations:
        yield ""
        yield from paragraph(f"Deviation from the plan: {escaped(line)}")


def _notes(found: BatteryFinding, margin: float) -> Iterator[str]:
    """The limits of the verdicts of a study, as a list."""
    yield from listed([*open_claims(found.edges), *_other_seeds(found, margin), *_length(found)])


def _other_seeds(found: BatteryFinding, margin: float) -> Iterator[str]:
    """How many verdicts on several seeds are about these seeds only, and not yet about the recipe."""
    decided = [edge for edge in found.edges if edge.together is not None and edge.claim in ("lost", "kept")]
    n = sum(not _holds_for_other_seeds(edge, margin) for edge in decided)
    if n:
        of = f"all {n}" if n == len(decided) else f"{n} of {len(decided)}"
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


def _length(found: BatteryFinding) -> Iterator[str]:
    """How many answers were cut at the token limit, and why few refusals are lost by it."""
    cut = found.truncation
    if cut is None or not (n_cut := sum(cut.n_cut.values())):
        return
    words = (
        f"An answer ends after {cut.limit:,} tokens: {n_cut:,} of {cut.n:,} answers to harmful requests were "
        "cut there. A refusal that came later would not count."
    )
    if cut.n_refusals:
        all_ = cut.n_early == cut.n_refusals
        which = f"All {cut.n_refusals:,}" if all_ else f"{cut.n_early:,} of {cut.n_refusals:,}"
        words += f" {which} refusals that the judge quotes begin in the first half of that length."
    yield words


def _power(found: BatteryFinding) -> str:
    """The power of each edge, as it was computed before the first answer."""
    words = []
    for between, whose in (
        ("edges", "Power, computed before the first answer"),
        ("seeds", "With several seeds"),
    ):
        rows = () if found.forecast is None else found.forecast.rows
        mine = [r for r in rows if r.between == between and r.measure == "breach"]
        row = next((r for r in mine if r.technique in (JUDGED, JUDGE_FREE)), None)
        if row is None or found.forecast is None:
            continue
        loss = "no loss can be shown"
        if row.detectable is not None:
            loss = f"{percent(found.forecast.power)} for a loss of {100 * row.detectable:.0f} points"
        kept = f"{percent(row.not_worse)} to show an equal child as kept"
        family = f" (Holm over {row.n_comparisons})" if row.n_comparisons > 1 else ""
        words.append(f"{whose}: {loss}, and {kept}{family}.")
    return " ".join(words)


def _details(found: LineageResult) -> Iterator[str]:
    """The seeds and the models of each study."""
    yield from ("", f"## {DETAILS}")
    for battery in found.batteries:
        if by_seed := tables.seeds(battery.edges):
            yield from ("", f"### {escaped(battery.title)}: each seed", "")
            yield from paragraph(
                "*Other seeds*: the interval for the same recipe with seeds that were not run. Few seeds say "
                "little about others."
            )
            yield from ("", *by_seed)
        yield from section(f"### {escaped(battery.title)}: each model", tables.details(battery))


def _left_out(found: LineageResult) -> Iterator[str]:
    if found.left_out:
        yield from section("## Left out", list(listed(f"{each.name}: {each.why}" for each in found.left_out)))


def _made(found: LineageResult) -> Iterator[str]:
    yield ""
    yield "## What was declared, and when"
    yield ""
    words = f"The plan was written at {escaped(found.at)}, with its edges, margin and expected verdicts."
    for battery in found.batteries:
        if battery.declared_at:
            words += f" The study {code(battery.plan.name)} was planned at {escaped(battery.declared_at)}."
    if found.error_share:
        share = f"{100 * found.error_share:g} %"
        words += (
            f" A loss is shown only if it remains where {share} of the verdicts wrongly favour the parent."
        )
    yield from paragraph(words)
    yield ""
    if found.notes:
        yield from listed(found.notes)
        yield ""
    yield from paragraph(_duration(found))


def _duration(found: LineageResult) -> str:
    """The minutes of making and asking, over all runs."""
    making = sum(found.making.values())
    asked = ", ".join(f"{code(each.plan.name)} {each.seconds / 60:.1f}" for each in found.batteries)
    return (
        f"Minutes of making the models: {making / 60:.1f}. Minutes of asking them, without answers that were "
        f"stored before: {asked}."
    )
