"""The lineage's view of a recipe and of a recorded model: protocols and values, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from msgspec import UNSET, UnsetType

from heredity.core.progress import Watch
from heredity.core.records import Descent, Model, Relation

if TYPE_CHECKING:
    from heredity.core.host import Device
    from heredity.engines import Engine


# Roles of children whose verdict is known in advance: those that differ by rounding only, and others.
CONTROLS = NOISE, CONTROL = "noise", "control"


@dataclass(frozen=True)
class Description:
    """A recipe's description of the child that it made; none of it enters the id."""

    name: str
    family: str
    licence: str
    format: Literal["safetensors", "gguf", "int8", "adapter", "remote"]
    modality: str = "text"
    notes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    descent: Descent | UnsetType = UNSET


@dataclass(frozen=True)
class Grown:
    """A model that exists: its record, and the folder that holds its files."""

    record: Model
    folder: Path


@dataclass(frozen=True)
class Preview:
    """A model before its weights are here: the engine that would answer it, its size, and its terms.

    engine        "torch" (the fast one), "transformers", "remote", ...; "" if no engine of this machine would
    reason        why it is not the fast one, or why no engine fits
    architecture, quantization
                  as the model's files name them; "" if they name none
    n_bytes       of its files; parameters: 0 if not known; is_exact: False for a catalogue's rounded figures
    memory        bytes that its weights take once they are loaded in `dtype`; 0 if not known
    chat          None if not known
    instead       references that another engine answers, with the model's name in them
    """

    name: str
    engine: str
    reason: str = ""
    architecture: str = ""
    quantization: str = ""
    n_bytes: int = 0
    parameters: int = 0
    is_exact: bool = True
    dtype: str = ""
    memory: int = 0
    context: int = 0
    chat: bool | None = None
    licence: str = ""
    is_gated: bool = False
    instead: tuple[str, ...] = ()


Announce = Callable[[Preview], None]


@runtime_checkable
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
    """A recipe that takes long, and keeps checkpoints in a folder of its own."""

    def at(self, folder: Path) -> Recipe:
        """This recipe, which resumes from the files of the folder. It is deleted once the child is
        recorded."""


@runtime_checkable
class NamedRecipe(Recipe, Protocol):
    """A recipe whose user names the child."""

    @property
    def name(self) -> str:
        """The name; "" for one by default."""


@runtime_checkable
class Computing(Protocol):
    """A recipe that computes with torch, on any device."""

    def on(self, device: Device) -> Recipe:
        """This recipe, which computes there."""


@runtime_checkable
class Taught(Protocol):
    """A recipe that learns answers which recorded models wrote."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """Ids of these models. They become parents of the child, behind those that are given."""


@runtime_checkable
class ForEncoders(Protocol):
    """A recipe whose parents are not models that generate text."""

    def check_parent(self, parent: Model) -> None:
        """Raise UsageError for a parent that it is not for. Nothing is converted before."""


class Pull(Recipe, Protocol):
    """A recipe without parents that fetches a model."""

    @property
    def pins(self) -> dict[str, str]:
        """Path -> SHA-256 of each file that it must give; {} if none is pinned."""

    def preview(self) -> Preview:
        """The model before its weights are fetched. Raises what `apply` raises before that."""


@runtime_checkable
class Puller(Protocol):
    """The plug-in `recipes/pull`."""

    def resolve(
        self, ref: str, downloads: Path, progress: Watch | None = None, mirrors: Path | None = None
    ) -> Pull:
        """The recipe that fetches `ref`. Raises UnknownName with the nearest name, UsageError or Refused."""


class KnownParent(NamedTuple):
    """The names of a parent and of its ancestors (lineage/catalog.py), and whether one is a hub's name."""

    names: frozenset[str]
    is_from_hub: bool


@dataclass(frozen=True)
class Adoption:
    """The claim of a user about a model that another tool made.

    made: how; None lets its files decide. is_declared: the user vouches for the descent although the model's
    own files name another parent. others: the plain names of the store's models that are neither these
    parents nor related to them.
    """

    made: Relation | None
    parents: tuple[KnownParent, ...]
    name: str = ""
    is_declared: bool = False
    others: frozenset[str] = frozenset()


@runtime_checkable
class Dequantizer(Protocol):
    """The plug-in `recipes/dequantize`."""

    def Dequantize(self, *, watch: Watch | None) -> Recipe: ...


@runtime_checkable
class AdapterMerger(Protocol):
    """The plug-in `recipes/merge_adapter`."""

    def MergeAdapter(self, *, watch: Watch | None) -> Recipe: ...


class StoredModels(Protocol):
    """The part of a store that targets use."""

    def models(self) -> list[Model]: ...
    def get(self, name: str) -> Grown: ...
    def ready(self, model: Grown) -> Grown: ...
    def base(self, adapter: Grown) -> Grown: ...


@runtime_checkable
class Target(Protocol):
    """A plug-in of `recipes/targets`: models named as "PREFIX:...", which need no download."""

    WRAPS_MODEL: bool

    def resolve(self, store: StoredModels, ref: str) -> tuple[Recipe, list[Grown]]:
        """The recipe that records the model that `ref` means, and its parents."""


@runtime_checkable
class FunctionTarget(Target, Protocol):
    """The target `call`, which also names a function that is given as a value."""

    def keep(self, function: Callable[..., Any]) -> str:
        """A reference to the function, which this process can resolve from now on."""


EngineLoader = Callable[[Grown], "Engine"]
