"""`heredity studies`: the studies of a folder, with state, progress and verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heredity.cli import PathArgument, Verb, shown_start

if TYPE_CHECKING:
    from heredity.study.folders import StudyFolder


@click.command("studies", cls=Verb, example="heredity studies runs")
@click.argument("place", metavar="[PLACE]", type=PathArgument(), default=".")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(place: Path, as_json: bool) -> None:
    """List the studies of a folder, with state and verdict.

    The last changed is the first. Folders up to three levels below PLACE are searched, which is the
    current folder by default. A study is running while a process of this machine works on it. It is done
    if every planned trial has an answer or an error, stopped if some have none, and planned before the
    first one. Shipping is the advice of its report: `not 1 of 3` advises against one of three models.
    Inheritance is the verdict on children against their parents. If studies of unrelated models are listed,
    too, the column is named comparison. Of one model it has the breach rate.
    """
    from heredity.core.terminal import note, write_json

    with shown_start():
        from heredity.study.folders import find_studies

    with shown_start("reading the studies"):
        studies = find_studies(place)
    if as_json:
        write_json([{**each._asdict(), "folder": str(each.folder)} for each in studies])
        return
    if not studies:
        note(f"No study in {place}, nor three levels below it. Start one: heredity study --help")
        return
    from heredity.core.terminal import line_table, out

    verdicts = [each.is_of_edges for each in studies if each.verdict]
    verdict = "inheritance" if verdicts and all(verdicts) else "comparison"
    columns: dict[str, list[str]] = {
        "study": _below(studies),
        "state": [each.state for each in studies],
        "answered": [f"{each.n_answered:,}/{each.n_planned:,}" if each.n_planned else "" for each in studies],
        "shipping": [each.shipping for each in studies],
        verdict: [each.verdict for each in studies],
        "models": [", ".join(each.models) for each in studies],
    }
    out().print(line_table(columns, out().width, ["study"], right=["answered"], last_width=7))
    for each in studies:
        if each.problem:
            note(f"unreadable: {each.problem}")


def _below(study_folders: list[StudyFolder]) -> list[str]:
    """The folders without the path that all of them share, which is printed once above them."""
    from os.path import commonpath

    from heredity.core.terminal import note

    shared = Path(commonpath([each.folder.parent for each in study_folders]))
    if not shared.parts:
        return [str(each.folder) for each in study_folders]
    note(f"in {shared}:")
    return [str(each.folder.relative_to(shared)) for each in study_folders]
