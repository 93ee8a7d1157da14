"""`heredity gc`: delete the files of the store that nothing needs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from heredity.cli import Verb, open_store

if TYPE_CHECKING:
    from heredity.lineage.removal import Garbage
    from heredity.lineage.store import Store

_WORDS = {
    "download": "an interrupted download, which a pull resumes",
    "killed": "left by a process that was killed",
    "training": "checkpoints of a model that is recorded",
    "note": "about a model that is gone",
    "scores": "of a teacher that is gone",
    "index": "made by heredity view for a study that is gone",
    "answers": "answers that studies share",
}


@click.command("gc", cls=Verb, example="heredity gc --yes")
@click.option("--answers", is_flag=True, help="Also the cache of answers; a study then asks them again.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def command(answers: bool, yes: bool) -> None:
    """Delete the files of the store that nothing needs.

    On a terminal heredity lists them and asks first. Elsewhere it only lists, without --yes. Models stay,
    and so do trainings that can resume: heredity rm removes models. Files that a running process holds
    are left alone.
    """
    from heredity.core.terminal import note, size
    from heredity.lineage.removal import delete_garbage, find_garbage

    store = open_store()
    garbage = find_garbage(store, with_answers=answers)
    if not garbage:
        note(f"Nothing to delete in {store.root}.")
        return
    _show(store, garbage)
    total = size(sum(each.n_bytes for each in garbage))
    is_asked = sys.stdin.isatty() and not yes
    if not yes and not is_asked:
        note(f"{total} can be freed: heredity gc --yes")
    elif yes or click.confirm(f"Delete them and free {total}?", err=True):
        note(f"{size(delete_garbage(store, garbage))} freed")


def _show(store: Store, garbages: list[Garbage]) -> None:
    from heredity.core.terminal import line_table, out, size

    columns = {
        "file": [str(each.path.relative_to(store.root)) for each in garbages],
        "size": [size(each.n_bytes) for each in garbages],
        "why": [_WORDS[each.kind] for each in garbages],
    }
    out().print(line_table(columns, out().width, ["file"], right=["size"], last_width=40))
