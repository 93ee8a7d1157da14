"""What a recipe and a recorded model are to the lineage: protocols and values, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from heredity.core.records import Model

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all (0: not known), what


@dataclass(frozen=True)
class Description:
    """What a recipe says about the child it made, beside its files; none of it enters the id."""

    name: str
    family: str
    licence: str
    format: Literal["safetensors", "gguf", "int8", "adapter", "remote"]
    modality: str = "text"
    notes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grown:
    """A model that exists: its record, and the folder that holds its files."""

    record: Model
    folder: Path


class Recipe(Protocol):
    """How a child is made: a frozen value with one method that does it."""

    @property
    def kind(self) -> str:
        """The recipe's word: pull, dequantize, ..."""

    def settings(self) -> dict[str, Any]:
        """Every setting that changes the result, as JSON; no path, clock or host."""

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the child's files into the empty folder `out`; none for a child of format "remote"."""


@runtime_checkable
class Resuming(Protocol):
    """A recipe that takes long, and keeps how far it came in a folder of its own."""

    def at(self, folder: Path) -> Recipe:
        """This recipe, going on from what the folder holds. It is deleted once the child is recorded."""
