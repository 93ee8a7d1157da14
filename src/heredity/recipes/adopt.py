"""Record a model that was made elsewhere as the child of a model of the store.

The first parent is its parent, the second is the model itself, as it was pulled. Its user declares the
descent: no file can prove it. Files are hard links if the file system allows, otherwise copies.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from heredity.core.errors import Refused, UsageError
from heredity.core.files import explain_full_disk
from heredity.lineage.types import Description, Grown


@dataclass(frozen=True)
class Adopt:
    """The second parent unchanged, as a declared child of the first."""

    name: str = field(default="", compare=False)

    kind = "adopt"

    def settings(self) -> dict[str, object]:
        """None: the two parents decide the result."""
        return {}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Link the files of the second parent. Raises Refused for an adapter, whose base is another model."""
        if len(parents) != 2:
            raise UsageError(
                f"adopt has two parents, the parent and its child, not {len(parents)}.", code="wrong-parents"
            )
        made = parents[1].record
        if made.format in ("adapter", "remote"):
            raise Refused(
                f"'{made.name}' has the format {made.format}: adopt needs whole weights.", code="not-adopted"
            )
        link_files(parents[1], out)
        form: Literal["gguf", "int8", "safetensors"] = "safetensors"
        if made.format == "gguf" or made.format == "int8":
            form = made.format
        name = self.name or f"{made.name}-of-{parents[0].record.name}"
        return Description(name, made.family, made.licence, form, made.modality, made.notes)


def link_files(model: Grown, out: Path) -> None:
    """Link a model's files into another folder, or copy them."""
    for file in model.record.files:
        source, target = model.folder / file.path, out / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            with explain_full_disk(out, file.bytes):
                shutil.copyfile(source, target)
