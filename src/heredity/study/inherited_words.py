"""Sentences and tables about inheritance: all edges, weak children, and children with several seeds.

Promises: a child is called worse only if its own edge shows it. Edges without enough evidence are counted.
A finding about several seeds names the seeds that it is about: these, or others.
Leaves to others: numbers into words (wording.py), and the headline (headline.py).
"""

from __future__ import annotations

from heredity.core.sections import TextTable
from heredity.study.estimates import JUDGED, Estimates, Inheritance, SeedGroup
from heredity.study.findings.readable import ReadableAnswers
from heredity.study.findings.useful import useful_by_model
from heredity.study.wording import (
    difference_words,
    edge_verdicts,
    names,
    p_words,
    percent,
    plural,
    points,
    points_interval,
    recipe_words,
    retention_words,
    scope_name,
    unsigned,
    verdict_words,
)

_NAMED = 3  # children that a sentence names


def edges_sentence(found: Estimates) -> str:
    """The verdicts on all edges in one sentence; "" if none has a verdict."""
    by_edge = edge_verdicts(found)
    if not by_edge:
        return ""
    called = names(found.models)
    worse = [
        f"{called[child]} than {called[parent]}" for (parent, child), v in by_edge.items() if v == "worse"
    ]
    verdicts = list(by_edge.values())
    n_same, n_open = verdicts.count("not worse"), verdicts.count("not enough evidence")
    more = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
    n_edges = f"{plural(len(by_edge), 'pair')} of parent and child"
    if worse:
        named = f"{', '.join(worse[:_NAMED])}{more}"
        parts, total = [f"In {len(worse)} of {n_edges} the child is worse than its parent ({named})"], ""
    else:
        parts, total = ["No child is shown to be worse than its parent"], f" of {n_edges}"
    if n_same:
        parts.append(f"in {n_same}{total} it is not worse, within {unsigned(found.margin)}")
    if n_open:
        parts.append(f"in {n_open}{total} there is not enough evidence")
    return "; ".join(parts)


def weak_lines(found: Estimates) -> list[str]:
    """A sentence for each weak child, with its competence line: it did not refuse, nor did it comply."""
    called, lines = names(found.models), dict[str, str]()
    rows, useful = found.rows("readable", ReadableAnswers), useful_by_model(found)
    readable = {row.model: row for row in rows if row.technique == JUDGED}
    what = "Where it broke, it did not refuse; that does not show that it complied."
    if found.counts_refusals("breach", JUDGED):
        what = "That it did not refuse does not show that it complied."
    for edge in found.edges:
        if edge.is_weak and (line := readable.get(edge.child)):
            read = (
                f"{percent(line.estimate.value)} of its answers to judged probes can be read (n {line.n:,})"
            )
            if row := useful.get(edge.child):
                read += f", {percent(row.estimate.value)} of {row.estimate.n:,} benign answers are useful"
            lines[edge.child] = f"{called.get(edge.child, '?')} is weak: {read}. {what}"
    return list(lines.values())


def inheritance_tables(found: Estimates) -> list[TextTable]:
    """Tables of all edges, one for breaches and one for over-refusal; [] without an edge."""
    edges = [edge for edge in found.edges if not edge.is_of_guard]
    called, measures = names(found.models), dict.fromkeys(e.compared.measure for e in edges)
    head = ["of", "child", "parent", "by", "verdict", "retention", "kept/lost/gained/never"]
    head += ["difference", "p, Holm", "would have shown"]
    titles = {"breach": "What was inherited", "over_refusal": "What was inherited: over-refusal"}
    return [
        TextTable(titles[m], head, [_cells(found, e, called) for e in edges if e.compared.measure == m])
        for m in measures
    ]


def _cells(found: Estimates, edge: Inheritance, called: dict[str, str]) -> list[str]:
    pair = edge.compared
    return [
        scope_name(found, pair.technique),
        called.get(edge.child, "?"),
        called.get(edge.parent, "?"),
        recipe_words(edge),
        verdict_words(edge),
        retention_words(edge),
        f"{edge.kept}/{edge.lost}/{edge.gained}/{edge.never}",
        difference_words(pair.difference),
        p_words(pair.p_holm),
        unsigned(pair.detectable),
    ]


def seeds_tables(found: Estimates) -> list[TextTable]:
    """The table of children that differ only in their seed, one row for all seeds; [] without any."""
    if not found.seeds:
        return []
    called = names(found.models)
    head = ["of", "child", "parent", "verdict, these seeds", "difference, these seeds", "p, Holm"]
    rows = [
        [
            scope_name(found, group.inherited.compared.technique),
            seeds_name(group),
            called.get(group.inherited.parent, "?"),
            verdict_words(group.inherited),
            difference_words(group.inherited.compared.difference),
            p_words(group.inherited.compared.p_holm),
            "; ".join(_each_seed(found, group)),
            points_interval(group.other_seeds),
        ]
        for group in found.seeds
    ]
    return [TextTable("Seeds of the same recipe", [*head, "each seed", "other seeds"], rows)]


def seeds_name(group: SeedGroup) -> str:
    """The recipe with its number of seeds: `lora (2 seeds)`."""
    return f"{recipe_words(group.inherited)} ({plural(len(group.seeds), 'seed')})"


def seeds_lines(found: Estimates) -> list[str]:
    """One sentence for each row of `seeds_tables`, and one on what a few seeds cannot show."""
    called = names(found.models)
    lines = [
        f"{scope_name(found, group.inherited.compared.technique)}: {seeds_name(group)} of "
        f"{called.get(group.inherited.parent, '?')}: {verdict_words(group.inherited)} for these seeds, "
        f"{difference_words(group.inherited.compared.difference)}; {'; '.join(_each_seed(found, group))}. "
        f"Other seeds: {points_interval(group.other_seeds)}."
        for group in found.seeds
    ]
    return [*lines, *([SEEDS_CLAIM] if lines else [])]


SEEDS_CLAIM = (
    "A verdict on several seeds is about these seeds. The interval for other seeds takes them as a sample of "
    "seeds: with two of them it rests on one degree of freedom, and seldom shows anything."
)


def _each_seed(found: Estimates, group: SeedGroup) -> list[str]:
    """The difference of each seed by itself, in the group's order."""
    compared = group.inherited.compared
    alone = {
        edge.child: edge.compared.difference
        for edge in found.edges
        if edge.parent == group.inherited.parent
        and (edge.compared.measure, edge.compared.technique) == (compared.measure, compared.technique)
    }
    return [
        f"seed {seed} {points(alone[child].value)}"
        for seed, child in zip(group.seeds, group.children, strict=True)
        if child in alone
    ]
