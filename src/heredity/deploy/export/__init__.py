"""Export a model to files that transformers or llama.cpp load, and check them against the model.

A file `export/<name>.py` is one format. Its `write(source, out)` writes the files; `readings(source, out)`
reads them back as other programs will.

Promises: exported files answer like the model. On a fixed text the log-probabilities agree within the
reader's tolerance. A conversation renders to the same characters, and the BOS and EOS tokens are the same.
The folder is complete, with its card and its bill of materials, or does not exist.
Leaves to others: making models (recipes/), and measuring their safety (study/), which the card quotes.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from heredity.core import registry
from heredity.core.errors import ContextOverflow, Refused, UsageError
from heredity.core.host import explain_out_of_memory
from heredity.core.records import Model, why_not_generative
from heredity.deploy.export import _bom, _card
from heredity.deploy.export._parity import ExportSource, Parity, compare, reference
from heredity.deploy.export._room import ADVICE, refuse_too_large
from heredity.lineage.integrity import workshop
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.study.storage import read_estimates

__all__ = ["Exported", "Parity", "export", "names"]


_OLD = 86_400.0  # seconds after which a copy is abandoned


class Exported(NamedTuple):
    """An exported model: its folder, the parity of each reader, and the form of its weights if it
    differs."""

    folder: Path
    parities: tuple[Parity, ...]
    form: str = ""


def names() -> tuple[str, ...]:
    """Return the names of all export formats."""
    return tuple(registry.names("deploy.export"))


def export(
    store: Store, model: Grown, to: str, out: Path, study: Path | None = None, memory: int | None = None
) -> Exported:
    """Write `model` as `to` into the folder `out`, which must be new or empty.

    study: a study folder whose rates of this model the card quotes. memory: bytes that may be used; None
    means all free memory. Raises UnknownName for an unknown format, OutOfMemory, and Refused if a reader
    disagrees. Raises UsageError if the folder is not empty, or if the model generates no text or is not in
    the study.
    """
    form = registry.load("deploy.export", to)
    if why := why_not_generative(model.record):
        raise UsageError(
            f"'{model.record.name}' is not exported: {why}, by which an export is checked. Its files in the"
            f" store are as transformers loads them: {model.folder}",
            code="export-not-checkable",
        )
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(f"{out} is not empty, or a link; name a new folder.", code="folder-not-empty")
    if out.resolve() == Path.cwd():
        raise UsageError("The current folder cannot be replaced; name a new one.")
    measured = read_estimates(study) if study is not None else None
    if measured and model.record.id not in {each.id for each in measured.models}:
        asked = ", ".join(f"'{each.name}'" for each in measured.models)
        raise UsageError(
            f"{study} measured {asked}, and not '{model.record.name}' ({model.record.id[:12]}).",
            code="study-of-another-model",
        )
    said = f"Exporting '{model.record.name}'"
    with workshop(store.root / "tmp") as bench, explain_out_of_memory(said, ADVICE):
        source = ExportSource(store, model, store.whole(model), bench, to)
        refuse_too_large(source, said, memory)
        (made := bench / "export").mkdir(parents=True)
        form.write(source, made)
        try:
            found = tuple(form.readings(source, made))  # one at a time, because each loads the weights
            expected = reference(source, {pair for each in found for pair in (each.picked or {}).items()})
        except ContextOverflow as error:
            raise UsageError(
                f"'{model.record.name}' is not exported: its context is too short for the text by which an "
                f"export is checked ({error}).",
                code="export-context-short",
            ) from None
        parities = tuple(compare(expected, each) for each in found)
        if bad := [p for p in parities if p.problem]:
            raise Refused(f"Not exported: {bad[0].reader} {bad[0].problem}.", code=bad[0].code)
        descent = _descent(source, store.ancestors(model.record))
        form_of = _form(source)
        _card.write(made, to, model.record, descent, parities, measured, form_of)
        _bom.write(made, model.record, descent)
        _move(made, out)
    return Exported(out, parities, form_of)


def _is_another(source: ExportSource) -> bool:
    """Return True if the files hold full-precision weights converted from the model, not its own
    weights."""
    own, whole = source.model.record, source.whole.record
    return own.id != whole.id and not (source.to == "gguf" and own.format == "gguf")


def _descent(source: ExportSource, ancestors: Sequence[Model]) -> list[Model]:
    """Return the origin of the files, nearest first: the converted weights if any, the model, its
    ancestors."""
    made = [source.whole.record] if _is_another(source) else []
    return [*made, source.model.record, *ancestors]


def _form(source: ExportSource) -> str:
    """Describe the weights in the files if they are not the recorded ones; "" otherwise."""
    own, whole = source.model.record, source.whole.record
    if not _is_another(source):
        return ""
    said = f"The files hold '{whole.name}', the whole weights of '{own.name}' ({whole.recipe.kind})"
    if own.format != "int8":
        return f"{said}."
    return (
        f"{said}: no longer int8, and what comes into a product is not rounded. For a small file export a"
        f" GGUF that was quantized (--to q8_0) from its parent."
    )


def _move(made: Path, out: Path) -> None:
    """Move the folder into place atomically; on another disk, copy it next to the target first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    try:
        os.replace(made, out)  # noqa: PTH105
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        near = _neighbour(out)
        try:
            shutil.copytree(made, near)
            os.replace(near, out)  # noqa: PTH105
        finally:
            shutil.rmtree(near, ignore_errors=True)


def _neighbour(out: Path) -> Path:
    """Return a path for the copy, and remove copies older than a day that killed exports left."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.export"):
        if time.time() - left.lstat().st_mtime > _OLD and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    return out.with_name(f".{out.name}.{uuid.uuid4().hex}.export")
