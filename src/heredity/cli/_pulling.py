"""Pull a model with progress on a terminal, and prepare it for its engine; several verbs do so.

Promises: licence and warnings are shown before the model is used.
Leaves to others: getting the bytes and checking them (recipes/pull/recipe.py).
"""

from __future__ import annotations

import sys

import click

from heredity import engines
from heredity.core.errors import UsageError
from heredity.core.sanitize import plain
from heredity.core.terminal import Display, err, note, size
from heredity.lineage import catalog
from heredity.lineage.store import Store
from heredity.lineage.types import Grown

_FREE = ("Apache-2.0", "MIT", "BSD-3-Clause")  # licences that need no consent


def pull(store: Store, ref: str) -> Grown:
    """Pull the model that `ref` names, and show the progress, its licence and its warnings."""
    with Display() as display:
        grown = store.pull(ref, display)
    model, screen = grown.record, err()
    total = sum(file.bytes for file in model.files)
    note(f"{model.name}: {size(total)}, licence: {model.licence}")
    for kind, text in model.notes.items():
        screen.print(plain(f"  {kind}: {text}"), style="yellow" if kind == "warning" else "", soft_wrap=True)
    return grown


def ready(store: Store, grown: Grown) -> Grown:
    """The form that the model's engine loads; a note is shown if it has to be made first."""
    announce(store, grown)
    return store.ready(grown)


def announce(store: Store, grown: Grown) -> None:
    """Show a note if `store.ready` has to convert the model first."""
    if grown.record.format == "gguf" and engines.choose(grown.record) == "torch":
        known = (
            model.parents == (grown.record.id,)
            for model in store.models()
            if model.recipe.kind == "dequantize"
        )
        if not any(known):
            note(f"converting {grown.record.name} to safetensors, once (a recorded child in the lineage) ...")


def ask_first(ref: str, yes: bool) -> None:
    """Ask before a model of the catalogue is downloaded. Without a terminal, free licences need no consent.

    Raises UsageError for another licence without `yes`, and Abort if the user declines.
    """
    entry = catalog.find(ref)
    assert entry is not None  # the store said so
    about = "" if entry.is_pinned else "about "
    offer = f"{ref} is not in the store: {about}{size(entry.n_bytes)}, licence {entry.licence}."
    has_person = sys.stdin.isatty() and sys.stderr.isatty()
    if not yes and not has_person and entry.licence not in _FREE:
        raise UsageError(f"{offer} Its licence needs your consent: add --yes, or run heredity pull {ref}.")
    if yes or not has_person:
        note(f"{offer} Pulling it.")
    elif not click.confirm(f"{offer} Pull it?", default=True, err=True):
        raise click.Abort
