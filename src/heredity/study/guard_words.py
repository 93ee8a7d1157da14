"""Sentences and a table about guards: what each buys in breaches, and costs in refusals and useful answers.

Promises: a guard has an effect only if the paired comparison with the same model without it shows one. Every
other comparison is "as many" within the margin, or "not enough evidence".
Leaves to others: edges between models (inherited_words.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from heredity.application.guarded import GUARD_ANSWERS, GUARD_SECONDS
from heredity.study.estimates import Estimates, Inheritance
from heredity.study.wording import TextTable, difference_words, names, percent, plural, unsigned

_NAMED = 3  # guards that a sentence names


def guard_tables(found: Estimates) -> list[TextTable]:
    """The table of all models behind guards; [] without any."""
    called, useful = names(found.models), {row.model: row.estimate.value for row in found.useful}
    rows = []
    for breach, refusal in _guarded(found):
        before, after = (useful.get(ident) for ident in (breach.parent, breach.child))
        rows.append(
            [
                called[breach.parent],
                called[breach.child].removeprefix(f"{called[breach.parent]}+"),
                _effect(found, breach),
                "no twin asked" if refusal is None else _effect(found, refusal),
                "\u2013" if before is None or after is None else f"{percent(before)} to {percent(after)}",
                _touched(found, breach.child),
                _latency(found, breach.child),
            ]
        )
    head = ["model", "behind", "breaches", "refused twins", "useful answers", "answers touched", "time"]
    return [TextTable("What guards buy and cost", head, rows)] if rows else []


def guard_lines(found: Estimates) -> list[str]:
    """The rows of the table as sentences."""
    return [
        f"{model} behind {guards}. Breaches: {breaches}. Refused twins: {refused}. Useful answers: {useful}. "
        f"Answers touched: {n}. Time of the guards: {time}."
        for table in guard_tables(found)
        for model, guards, breaches, refused, useful, n, time in table.rows
    ]


def guards_sentence(found: Estimates) -> str:
    """One sentence about all guards; "" without any."""
    every = list(_guarded(found))
    if not every:
        return ""
    called = names(found.models)
    fewer = [called[breach.child] for breach, _ in every if breach.compared.verdict_ba == "worse"]
    dearer = [called[r.child] for _, r in every if r is not None and r.verdict == "worse"]
    parts = [
        f"Of {plural(len(every), 'guarded model')} {len(fewer) or 'none'} "
        f"{'breaks' if len(fewer) < 2 else 'break'} less often than without{_named(fewer)}"
    ]
    parts.append(
        f"{len(dearer) or 'none'} {'refuses' if len(dearer) < 2 else 'refuse'} more twins{_named(dearer)}"
    )
    return "; ".join(parts)


def _named(some: list[str]) -> str:
    more = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
    return f" ({', '.join(some[:_NAMED])}{more})" if some else ""


def _guarded(found: Estimates) -> Iterator[tuple[Inheritance, Inheritance | None]]:
    """For each model behind guards its first comparison of breaches, and that of refused twins."""
    own = [edge for edge in found.edges if edge.is_of_guard]
    for child in dict.fromkeys(edge.child for edge in own):
        by_measure: dict[str, Inheritance] = {}
        for edge in own:
            if edge.child == child and edge.compared.n:
                by_measure.setdefault(edge.compared.measure, edge)
        if "breach" in by_measure:
            yield by_measure["breach"], by_measure.get("over_refusal")


def _effect(found: Estimates, edge: Inheritance) -> str:
    pair = edge.compared
    if pair.verdict_ba == "worse":
        word = "fewer"
    elif pair.verdict_ab == "worse":
        word = "more"
    elif pair.verdict_ab == pair.verdict_ba == "not worse":
        word = f"as many, within {unsigned(found.margin)}"
    elif pair.verdict_ab == "not worse":
        word = f"not more, within {unsigned(found.margin)}"
    else:
        word = "not enough evidence"
    return f"{word}; {difference_words(pair.difference)}"


def _touched(found: Estimates, model: str) -> str:
    """The answers of a model in which guards found something: "12 of 150"."""
    mine = next((row for row in found.guarded if row.model == model), None)
    if mine is None:
        return "none"
    failed = f"; a guard failed open in {mine.n_failed_open:,}" if mine.n_failed_open else ""
    if mine.n_failed_closed:
        failed += f"; a guard failed and blocked in {mine.n_failed_closed:,}"
    return f"{mine.n_touched:,} of {mine.n_answers:,}{failed}"


def _latency(found: Estimates, model: str) -> str:
    """The mean seconds that guards took for an answer of a model, in the runs that recorded them."""
    account = found.circumstances.accounts.get(model, {})
    if not (n := account.get(GUARD_ANSWERS)):
        return "not recorded"
    return f"{account.get(GUARD_SECONDS, 0.0) / n:.2g} s an answer"
