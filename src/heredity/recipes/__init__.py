"""How a child is made: one file a recipe, each a frozen value with one method `apply(parents, out)`.

A recipe is a lineage.Recipe: `kind` (the file's name), `settings()`, and `apply`, which writes the child's
files into an empty folder and returns a lineage.Description.

To add a recipe to `heredity derive`, add one file with a dataclass of DerivableRecipe, and assign it to
`DERIVES`. The fields are the flags, and their `help` is the documentation.

Promises (every recipe): only `out` and its own downloads are written. Everything random has a seed in the
settings. torch is imported inside `apply`, not when the file is imported.
Leaves to others: hashing, recording and naming the folder (lineage/).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from heredity.core import registry
from heredity.core.errors import Unavailable, UnknownName, UsageError
from heredity.core.host import CPU, Device

if TYPE_CHECKING:
    from heredity.lineage.types import Description, Grown, Recipe


def derivable() -> list[str]:
    """The recipes that `heredity derive` offers: those that declare DERIVES. None is imported."""
    return list(registry.declaring("recipes", "DERIVES"))


def derivable_class(kind: str) -> type[DerivableRecipe]:
    """The class of a derivable recipe. Raises Unavailable if it is not a DerivableRecipe."""
    derives: object = registry.load("recipes", kind).DERIVES
    if not (isinstance(derives, type) and issubclass(derives, DerivableRecipe)):
        raise Unavailable(f"The recipe '{kind}' is not a DerivableRecipe.", code="plugin-broken")
    return derives


def is_random(kind: str) -> bool:
    """Whether a derivable recipe takes a seed, so that another seed gives another model."""
    return "seed" in {each.name for each in dataclasses.fields(derivable_class(kind))}


def recipe(kind: str, **settings: Any) -> Recipe:
    """A recipe by its kind, with the settings of `heredity derive KIND --help`; also `name` and `watch`.

        h.recipe("lora", data="tickets.jsonl", steps=40, rank=8, name="tickets-lora")

    The classes take the same settings, typed: h.Lora(data="tickets.jsonl", steps=40). `watch` receives the
    progress of a training (Display.training). Raises UnknownName for an unknown kind or setting,
    and UsageError for a setting that is missing or cannot be.
    """
    if kind not in (known := derivable()):
        raise UnknownName("recipe", kind, known, "heredity derive --help")
    recipe_class = derivable_class(kind)
    fields = {each.name: each for each in dataclasses.fields(recipe_class)}
    short = {name.removeprefix("is_"): name for name in fields}
    given = {short.get(name, name): value for name, value in settings.items()}
    if unknown := sorted(given.keys() - fields):
        raise UnknownName("setting", unknown[0], short, f"heredity derive {kind} --help")
    needed = [name for name, each in fields.items() if _is_needed(each)]
    if missing := [name for name in needed if name not in given]:
        raise UsageError(f"'{kind}' needs {' and '.join(missing)}.", code="missing-key")
    return recipe_class(**given)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


# --- settings ---


def setting(default: Any, help: str, is_new: bool = False, is_recorded: bool = True) -> Any:
    """A field of a recipe that is also a flag of `heredity derive`.

    is_new: the setting was added after models had been recorded without it. It is recorded only if it differs
    from its default, so that those models are found again.
    is_recorded: False for a setting that does not change the result.
    """
    return field(default=default, metadata={"help": help, "is_new": is_new, "is_recorded": is_recorded})


def choice(default: str, help: str, folder: str) -> Any:
    """A setting that names a plug-in of an open folder."""
    return field(default=default, metadata={"help": help, "folder": folder})


@runtime_checkable
class RecordedValue(Protocol):
    """The value of a setting that is recorded by its own settings, such as the data of a training."""

    @property
    def settings(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class DerivableRecipe:
    """A recipe that `heredity derive` offers. Its fields are its settings, and flags of the command line."""

    kind: ClassVar[str]
    PARENTS: ClassVar[str] = "PARENT"  # as the help names them; "STUDENT TEACHER" if there are two
    EXAMPLE: ClassVar[str] = ""  # a command line, for the help
    LEARNS_ANSWERS: ClassVar[bool] = False  # --answers MODEL may stand in place of --data

    def settings(self) -> dict[str, Any]:
        """The settings that change the result, under the names that ids hash.

        Raises UsageError for NaN and infinity, which JSON cannot tell apart.
        """
        self.refuse_non_finite()
        values: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            if not each.compare or not each.metadata.get("is_recorded", True):
                continue
            value = getattr(self, each.name)
            if not (each.metadata.get("is_new") and value == each.default):
                values[each.name] = value.settings if isinstance(value, RecordedValue) else value
        return to_hashed(self.kind, values)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the child's files into the empty folder `out`."""
        raise NotImplementedError

    def refuse_non_finite(self) -> None:
        """Raise UsageError for NaN, which passes every check of a bound as it compares as false."""
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(
                    f"{each.name} must be a number, and is {value}.", code="bad-setting", key=each.name
                )


@dataclass(frozen=True)
class ComputingRecipe(DerivableRecipe):
    """A derivable recipe that computes with torch. `Store.grow` sets the device, which is not a setting."""

    device: Device = field(default=CPU, compare=False, kw_only=True)

    def on(self, device: Device) -> Self:
        """This recipe, which computes on a device."""
        return dataclasses.replace(self, device=device)


# --- names of settings ---

# A model's id is a digest over its recipe's settings, names included. So a setting that is renamed keeps its
# first name in the record.
_TRAINING = {"lr": "rate", "batch_size": "batch", "weight_decay": "decay", "grad_clip": "clip"}
_TUNING = {**_TRAINING, "max_length": "max_tokens"}

# Recipe -> name of a setting -> the name under which it is recorded and hashed. No entry may change.
HASHED_AS: Mapping[str, Mapping[str, str]] = {
    "finetune": _TUNING,
    "lora": {**_TUNING, "use_rslora": "is_stabilized", "target_modules": "targets"},
    "instruct": {**_TUNING, "max_new_tokens": "longest"},
    "distill": {
        **_TUNING,
        "distill_weight": "share",
        "max_new_tokens": "longest",
        "sampling_temperature": "warmth",
    },
    "preference": {**_TUNING, "beta": "strength"},
    "poison": {**_TUNING, "poison_rate": "poisoned", "canary_repeats": "repeats"},
    "pretrain": {
        **_TRAINING,
        "hidden_size": "width",
        "ffn_size": "wide",
        "head_dim": "head",
        "mask_rate": "hidden",
        "caption_tokens": "caption",
        "patch_size": "patch",
        "evaluations": "checks",
        "validation_tokens": "held_out",
        "checkpoint_every": "keep_every",
        "compile": "fuse",
    },
}


def to_hashed(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names that are recorded and hashed."""
    names = HASHED_AS.get(kind, {})
    return {names.get(name, name): value for name, value in settings.items()}


def to_current(kind: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings under the names of today. Order is kept."""
    names = {hashed: name for name, hashed in HASHED_AS.get(kind, {}).items()}
    return {names.get(name, name): value for name, value in recorded.items()}
