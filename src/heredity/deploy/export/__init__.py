"""Hand a model out: files that transformers or llama.cpp load, checked against the model they came from.

A file `export/<name>.py` is one format; it has `write(source, out)`, which writes files, and
`readings(source, out)`, which reads them back as others will.

Promises: nothing is handed out that answers otherwise: on a fixed text the log-probabilities agree within
the reader's tolerance, a conversation is rendered to the same characters, the tokens that begin and end a
text are the same; a folder is there whole, with its card and its bill of materials, or not at all.
Leaves to others: making models (recipes/), and what a model's safety is (study.py); a card quotes that.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from heredity.core import registry
from heredity.core.errors import ContextOverflow, Refused, UsageError
from heredity.core.host import explain_out_of_memory
from heredity.core.records import Model
from heredity.deploy.export import _bom, _card
from heredity.deploy.export._parity import ExportSource, Parity, compare, reference
from heredity.deploy.export._room import ADVICE, refuse_too_large
from heredity.engines import why_not_generative
from heredity.lineage.integrity import workshop
from heredity.lineage.store import Store
from heredity.lineage.types import Grown
from heredity.study.storage import read_estimates

__all__ = ["Exported", "Parity", "export", "names"]


_OLD = 86_400.0  # seconds after which no export is still copying


class Exported(NamedTuple):
    """What was handed out: its folder, how each reader agreed, and its form where that is another one."""

    folder: Path
    parities: tuple[Parity, ...]
    form: str = ""


def names() -> tuple[str, ...]:
    """Every format."""
    return tuple(registry.names("deploy.export"))


def export(
    store: Store, model: Grown, to: str, out: Path, study: Path | None = None, memory: int | None = None
) -> Exported:
    """Write `model` as `to` into the folder `out`, which must be new or empty.

    study: a folder whose measured rates of this model the card quotes; memory: bytes that may be used, None:
    what is free. Raises UnknownName for a format, UsageError for a folder that holds something and for a
    model that writes no text, or is not in the study; Refused where a reader does not agree, OutOfMemory.
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
            found = tuple(form.readings(source, made))  # one after another, each with weights of its own
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
    """Whether the files hold the whole weights that were made of the model, and not its own."""
    own, whole = source.model.record, source.whole.record
    return own.id != whole.id and not (source.to == "gguf" and own.format == "gguf")


def _descent(source: ExportSource, ancestors: Sequence[Model]) -> list[Model]:
    """Where the files come from, nearest first: the whole form where that was made of the model, ..."""
    made = [source.whole.record] if _is_another(source) else []
    return [*made, source.model.record, *ancestors]


def _form(source: ExportSource) -> str:
    """What the files hold where they are not the recorded ones: of which model, and what that changes."""
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
    """Into place in one step, or by way of a neighbour where that is another disk."""
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
    """A name for the copy; what a killed export left under such a name is removed after a day."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.export"):
        if time.time() - left.lstat().st_mtime > _OLD and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    return out.with_name(f".{out.name}.{uuid.uuid4().hex}.export")


def copy(paths: Iterable[Path], out: Path) -> None:
    """Copies, never links: what is handed out may be edited, and the store's files may not."""
    for path in paths:
        shutil.copyfile(path, out / path.name)
