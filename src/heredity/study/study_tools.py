"""The tools of a study's application that run: whether they may, and the record of their results.

    tool_results.jsonl    one row per call, in the study's folder

Promises: a call that was made before gets the recorded result, whichever model makes it and in whichever run.
Tools run only for an application that the user named: a folder may come from anyone.
Leaves to others: running them (application/toolbox.py), and the conversations (scheduler.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heredity.application.toolbox import TOOL_RESULTS, RecordedResults, Toolbox, recorded_in
from heredity.core.errors import UsageError
from heredity.study.plan import Grid
from heredity.study.resume import EarlierRuns


@contextmanager
def study_tools(
    folder: Path, grid: Grid, earlier: EarlierRuns, replay: Path | None, is_named: bool, is_alone: bool
) -> Iterator[Toolbox | None]:
    """The tools of a study; None if none runs, or nothing is left to ask.

    replay: a folder whose recorded results are served, and no tool runs. is_named: the user named the
    application in this command. is_alone: no other process writes results. Raises UsageError if tools would
    run without that.
    """
    application = grid.plan.application
    if not application.runs_tools or next(earlier.still_to_ask(range(len(grid))), None) is None:
        yield None
        return
    if replay is None and not is_named:
        raise UsageError(
            f"The application of {folder} runs tools on this machine, and a folder may come from anyone. "
            f"Give the study's whole command with --out {folder}, or serve its recorded results only: "
            f"--replay {folder}.",
            code="tools-not-named",
        )
    if not is_alone:
        raise UsageError(
            "The application runs tools, whose results all models share: one process asks such a study. "
            "Leave --workers and --shard out. A --replay runs none, and may have --workers.",
            code="tools-shared",
        )
    more = () if replay is None else recorded_in(replay)
    with (
        RecordedResults(folder / TOOL_RESULTS, more) as results,
        Toolbox(application, results, runs=replay is None) as toolbox,
    ):
        yield toolbox
