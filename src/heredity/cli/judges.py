"""`heredity judges`: who decides, and how often that is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import Lister, Verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heredity.judges import JudgeQuality

_EXAMPLE = (
    "heredity judges calibrate rules --task refusal --labels answers.jsonl "
    "--columns prompt=question,response=answer,label=verdict --positive refused"
)


@click.group("judges", cls=Lister, example="heredity judges list --json")
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the judges and how good they are; calibrate one."""
    if ctx.invoked_subcommand is None:
        _list(as_json=False)


@command.command("list", cls=Verb, example="heredity judges list --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Each judge with its sensitivity and specificity on labels that people gave."""
    _list(as_json)


@command.command("calibrate", cls=Verb, example=_EXAMPLE)
@click.argument("judge")
@click.option(
    "--labels", required=True, type=click.Path(path_type=Path), metavar="FILE", help="CSV or JSON lines."
)
@click.option(
    "--columns", required=True, metavar="prompt=P,response=R,label=L", help="Which of its columns hold what."
)
@click.option("--positive", required=True, metavar="V[,V]", help="Labels that mean: refused, or harmful.")
@click.option("--task", required=True, type=click.Choice(["refusal", "harm"]), help="What the labels say.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(judge: str, labels: Path, columns: str, positive: str, task: str, as_json: bool) -> None:
    """Measure a judge on answers that people labelled."""
    from typing import cast

    from heredity import judges
    from heredity.cli._terminal import write_json
    from heredity.judges._quality import Task

    found = judges.calibrate(judge, labels, _pairs(columns), positive.split(","), cast(Task, task))
    if as_json:
        write_json(found)
    else:
        _show([found])


def _pairs(text: str) -> dict[str, str]:
    from heredity.errors import UsageError

    parts = (part.partition("=") for part in text.split(","))
    pairs = {key: value for key, _, value in parts}
    if not {"response", "label"} <= set(pairs) <= {"prompt", "response", "label"} or not all(pairs.values()):
        raise UsageError(
            f"--columns names response, label and maybe prompt: prompt=P,response=R,label=L; not '{text}'."
        )
    return pairs


def _list(as_json: bool) -> None:
    from heredity import judges
    from heredity.cli import _listing
    from heredity.cli._terminal import out, write_json

    measured = judges.quality()
    if as_json:
        write_json({"judges": _listing.purposes("judges"), "quality": measured})
        return
    _listing.show("judges", as_json=False)
    out().print()
    _show(measured)


def _show(measured: Sequence[JudgeQuality]) -> None:
    from heredity.cli._terminal import cell, out, percent, table

    grid = table(
        "judge", "task", "labels", "sensitivity", "n", "specificity", "n", "accuracy", whole=["judge", "task"]
    )
    for row in measured:
        grid.add_row(
            cell(row.judge, "bold"), cell(row.task), cell(row.labels),
            percent(row.sensitivity), f"{row.sensitivity.n}",
            percent(row.specificity), f"{row.specificity.n}", percent(row.accuracy),
        )  # fmt: skip
    out().print(grid)
