"""Resume a study: which trials are still to ask, and which rows of earlier runs still count.

    earlier = read_earlier_runs(folder, grid, meter)
    for index in earlier.still_to_ask(grid.of_model(0)): ...

Only `EarlierRuns.still_to_ask` decides which trials are asked. Look there if a resumed study asks twice, or
too little.

Promises: a trial with a row in responses.jsonl is not asked again. Answers of one model are never mixed from
engines with different arithmetic. A verdict counts only for the response and the judges that it is from.
Leaves to others: the order of the trials (study.py), asking (runner.py, scheduler.py), rows (storage.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.files import Rows, rewrite
from heredity.core.progress import TrialMeter
from heredity.core.records import Response, Verdict, is_failed, is_out_of_scope
from heredity.redteam.judges import Decider
from heredity.study.deviations import note_event
from heredity.study.plan import Grid, Plan, PlannedModel, TrialSet
from heredity.study.storage import (
    ERRORS,
    RESPONSES,
    RESTORE,
    RUNS,
    VERDICTS,
    Prefixes,
    ResponseDigests,
    VerdictRow,
    answered_rows,
    open_responses,
    run_records,
    verdict_rows,
)


@dataclass(frozen=True)
class EarlierRuns:
    """The state of a study's folder after the runs so far.

    answered  the trials that have a row in responses.jsonl
    engines   by model, in the plan's order: the engines that answered
    digests   of the responses, for their verdicts
    """

    answered: TrialSet
    engines: tuple[set[str], ...]
    digests: ResponseDigests

    def still_to_ask(self, indices: Iterable[int]) -> Iterator[int]:
        """The trials among `indices` that this run has to ask: those without a row in responses.jsonl.

        An error is a row, too, so its trial is not asked again; `--retry-errors` first moves such rows away
        (`set_errors_aside`). So is a trial that its model does not support. A torn last line is not a row. A
        trial whose answer is in the response cache is asked, but reaches no engine (scheduler.py).
        """
        return self.answered.missing(indices)

    def of_block(self, grid: Grid, m: int, low: int, high: int) -> Iterator[int]:
        """The trials of a model in a block of probes that are still to ask."""
        return self.still_to_ask(grid.of_probes(m, low, high))


def read_earlier_runs(folder: Path, grid: Grid, meter: TrialMeter) -> EarlierRuns:
    """Read responses.jsonl once, and count its rows in `meter`.

    Raises Damaged for a row of another plan, a second row of a trial, or a lost prefix. It also does for an
    engine that no run recorded, because its answers could not be continued.
    """
    answered, engines = TrialSet(len(grid)), tuple(set[str]() for _ in grid.plan.models)
    digests, prefixes = ResponseDigests(len(grid)), set[str]()
    for row in answered_rows(open_responses(folder), grid, answered):
        digests.add(row)
        if not is_out_of_scope(row):
            meter.had(is_failed(row), row.is_cached, row.index // meter.n_per_part)
        engines[row.index // grid.plan.n_per_model].add(row.engine)
        prefixes.update(exchange.prefix for exchange in row.exchanges)
    Prefixes(folder).check(prefixes)
    _refuse_unknown_arithmetic(folder, grid.plan, engines)
    return EarlierRuns(answered, engines, digests)


def read_digests(folder: Path, grid: Grid) -> ResponseDigests:
    """The digests of the responses in a folder."""
    digests = ResponseDigests(len(grid))
    for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
        digests.add(row)
    return digests


def set_errors_aside(folder: Path, grid: Grid) -> None:
    """Move every error row from responses.jsonl to errors.jsonl, so that its trial is asked again.

    A trial that its model does not support stays, because it is not an error. If the process is killed in
    between, a row is in both files, and twice in errors.jsonl after the next call. It is never lost. Raises
    UsageError for an import, whose models are not here.
    """
    if grid.plan.application.rendering == "recorded":
        raise UsageError(
            f"{folder} holds answers that were recorded elsewhere: they cannot be asked again here. "
            "Record what is missing, and import it into another folder."
        )
    n = 0
    with Rows(folder / ERRORS, Response) as aside:
        for row in answered_rows(open_responses(folder), grid, TrialSet(len(grid))):
            if is_failed(row):
                aside.append(row)
                n += 1
    if n:
        rewrite(folder / RESPONSES, Response, lambda row: not is_failed(row))


def drop_stale_verdicts(
    folder: Path, digests: ResponseDigests, grid: Grid, decider: Decider | None = None
) -> None:
    """Drop every verdict that is not about the current response, or not by the current judges.

    Its response is gone, was asked again or was edited, or the judges changed: it is judged again.
    """
    chosen, probes, samples = decider or Decider(), grid.plan.probes, grid.plan.samples
    now = [chosen.judged_by(probe) for probe in probes]

    def is_own(row: VerdictRow | Verdict) -> bool:
        return row.judged_by == now[row.index // samples % len(probes)] and digests.is_judged_by(row)

    # It reads to the end: damage anywhere is reported before a row is dropped.
    stale = [row for row in verdict_rows(folder, grid) if not is_own(row)]
    for judge, n in sorted(Counter(row.judge for row in stale if digests.is_judged_by(row)).items()):
        note_event(folder, "judged_again", n, judge)
    if stale:
        rewrite(folder / VERDICTS, Verdict, is_own)


# --- the arithmetic of earlier answers --------------------------------------------------------------


def refuse_other_arithmetic(folder: Path, model: PlannedModel, numerics: str, earlier: set[str]) -> None:
    """Raise NotComparable if `earlier` engines of this model have other numerics than these."""
    held = {run.base_numerics for run in run_records(folder) if run.engine in earlier}
    if held - {numerics}:
        raise NotComparable(
            f"Model '{model.name}' answered in {folder} as '{held.pop()}' computes, this engine is "
            f"'{numerics}': its answers would not belong together. Ask on the machine and with the "
            "versions of before, or in another folder."
        )


def _refuse_unknown_arithmetic(folder: Path, plan: Plan, earlier: Iterable[set[str]]) -> None:
    """Raise Damaged if no run records the arithmetic of an engine of `earlier` (by model)."""
    held = {(run.model, run.engine) for run in run_records(folder)}
    for model, engines in zip(plan.models, earlier, strict=True):
        for engine in sorted(engines):
            if (model.id, engine) not in held:
                raise Damaged(
                    f"{folder / RUNS}: no run of '{model.name}' by '{engine}', which answered here: "
                    f"its arithmetic is not known. {RESTORE}"
                )
