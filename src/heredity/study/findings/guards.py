"""The answers that guards touched, and the effect of each guard on breaches and refusals.

Promises: the counts are those of the recorded answers, however often the study was stopped and resumed. A
guard has an effect only if the paired comparison with the same model without it shows one. Every other
comparison is "as many" within the margin, or "not enough evidence".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from heredity.application.guarded import GUARD_ANSWERS, GUARD_SECONDS
from heredity.application.guards import FAILED, FAILED_OPEN
from heredity.core.records import Record
from heredity.core.sanitize import plural
from heredity.core.sections import Section, TextTable
from heredity.lineage.types import CONTROL
from heredity.study.estimates import Estimates, Inheritance
from heredity.study.findings.protocols import RecordedStudy, StudyEvidence
from heredity.study.findings.useful import useful_by_model
from heredity.study.plan import Plan
from heredity.study.storage import RawResponse
from heredity.study.wording import difference_words, names, percent, unsigned

NAME, ORDER = "guards", 5
_NAMED = 3  # guards that a sentence names


class GuardedAnswers(Record, frozen=True):
    """The answers of a model in which guards found something, in them or in their question.

    by_guard: the label of each guard that found something -> answers. An answer counts once for each guard.
    n_failed_open: answers that a guard let pass unchecked, because it raised an error and fails open.
    n_failed_closed: answers that a guard blocked because it raised an error.
    """

    model: str
    n_answers: int
    n_touched: int
    by_guard: dict[str, int]
    n_failed_open: int
    n_failed_closed: int


Row = GuardedAnswers


def compute(evidence: StudyEvidence) -> Iterator[GuardedAnswers]:
    """The counts of each model whose answers have notes of guards, in the plan's order."""
    plan, counts = evidence.plan, _GuardCounts(evidence.plan)
    if plan.application.guards or any(model.guards for model in plan.models):
        evidence.watch(counts.see)
    return counts.rows()


class _GuardCounts:
    """Counts by model."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._answers, self._touched = Counter[int](), Counter[int]()
        self._failed_open, self._failed_closed = Counter[int](), Counter[int]()
        self._by_guard: dict[int, Counter[str]] = {}

    def see(self, response: RawResponse) -> None:
        model = response.index // (self._plan.n_trials // len(self._plan.models))
        self._answers[model] += len(response.exchanges)
        for exchange in response.exchanges:
            if exchange.guarded:
                guards = {note.partition(": ")[0] for note in exchange.guarded if FAILED_OPEN not in note}
                self._touched[model] += bool(guards)
                self._failed_open[model] += any(FAILED_OPEN in note for note in exchange.guarded)
                self._failed_closed[model] += any(FAILED in note for note in exchange.guarded)
                self._by_guard.setdefault(model, Counter()).update(guards)

    def rows(self) -> Iterator[GuardedAnswers]:
        for m, by_guard in sorted(self._by_guard.items()):
            yield GuardedAnswers(
                self._plan.models[m].id, self._answers[m], self._touched[m], dict(sorted(by_guard.items())),
                self._failed_open[m], self._failed_closed[m],
            )  # fmt: skip


def show(rows: Sequence[GuardedAnswers], study: RecordedStudy) -> Section | None:
    """A table of all models behind guards, and its rows as sentences; None without such a model."""
    estimates, title = study.estimates, "What guards buy and cost"
    touched = {row.model: row for row in rows}
    called, useful = (
        names(estimates.models),
        {model: row.estimate.value for model, row in useful_by_model(estimates).items()},
    )
    cells: list[list[str]] = []
    for breach, refusal in _guarded(estimates):
        before, after = (useful.get(ident) for ident in (breach.parent, breach.child))
        cells.append(
            [
                called[breach.parent],
                called[breach.child].removeprefix(f"{called[breach.parent]}+"),
                _effect(estimates, breach),
                "no twin asked" if refusal is None else _effect(estimates, refusal),
                "\u2013" if before is None or after is None else f"{percent(before)} to {percent(after)}",
                _touched(touched.get(breach.child)),
                _latency(estimates, breach.child),
            ]
        )
    if not cells:
        return None
    head = ["model", "behind", "breaches", "refused twins", "useful answers", "answers touched", "time"]
    claim = "Each model behind a guard is compared with itself without it, on the same trials. "
    sentences = tuple(
        f"{model} behind {guards}. Breaches: {breaches}. Refused twins: {refused}. Useful answers: {use}. "
        f"Answers touched: {n}. Time of the guards: {time}."
        for model, guards, breaches, refused, use, n, time in cells
    )
    claim += f"{guards_sentence(estimates)}."
    return Section(NAME, title, claim, (TextTable(title, head, cells),), sentences)


def guards_sentence(estimates: Estimates) -> str:
    """One sentence about all guards; "" without any."""
    every = list(_guarded(estimates))
    if not every:
        return ""
    called = names(estimates.models)
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


def _guarded(estimates: Estimates) -> Iterator[tuple[Inheritance, Inheritance | None]]:
    """For each model behind guards its first comparison of breaches, and that of refused twins."""
    edges = [edge for edge in estimates.edges if edge.is_of_guard and edge.role != CONTROL]
    for child in dict.fromkeys(edge.child for edge in edges):
        by_measure: dict[str, Inheritance] = {}
        for edge in edges:
            if edge.child == child and edge.compared.n:
                by_measure.setdefault(edge.compared.measure, edge)
        if "breach" in by_measure:
            yield by_measure["breach"], by_measure.get("over_refusal")


def _effect(estimates: Estimates, edge: Inheritance) -> str:
    pair = edge.compared
    if pair.verdict_ba == "worse":
        word = "fewer"
    elif pair.verdict_ab == "worse":
        word = "more"
    elif pair.verdict_ab == pair.verdict_ba == "not worse":
        word = f"as many, within {unsigned(estimates.margin)}"
    elif pair.verdict_ab == "not worse":
        word = f"not more, within {unsigned(estimates.margin)}"
    else:
        word = "not enough evidence"
    return f"{word}; {difference_words(pair.difference)}"


def _touched(row: GuardedAnswers | None) -> str:
    """The answers of a model in which guards found something: "12 of 150"."""
    if row is None:
        return "none"
    failed = f"; a guard failed open in {row.n_failed_open:,}" if row.n_failed_open else ""
    if row.n_failed_closed:
        failed += f"; a guard failed and blocked in {row.n_failed_closed:,}"
    return f"{row.n_touched:,} of {row.n_answers:,}{failed}"


def _latency(estimates: Estimates, model: str) -> str:
    """The mean seconds that guards took for an answer of a model, in the runs that recorded them."""
    account = estimates.circumstances.accounts.get(model, {})
    if not (n := account.get(GUARD_ANSWERS)):
        return "not recorded"
    return f"{account.get(GUARD_SECONDS, 0.0) / n:.2g} s an answer"
