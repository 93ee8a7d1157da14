"""Shared by all training recipes: their settings, and one run of the loop.

Promises: settings are checked on construction; exactly those that change the result are recorded. The child's
notes say what a run left out or chose by measurement.
Leaves to others: the objective and the trained weights (finetune.py, lora.py, distill.py, preference.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from heredity.core.errors import UsageError
from heredity.core.progress import Watch
from heredity.core.records import digest
from heredity.engines.formats.rewrite import copy_rest
from heredity.lineage.setting_names import to_hashed
from heredity.lineage.types import Description, Grown
from heredity.train.data.chat import Data


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


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """The settings of every recipe that trains on examples.

    data: conversations, or the path of a file of them. Raises BadInput for a file that cannot be read, and
    UsageError for a setting that cannot be.
    """

    data: Data | Path | str = field(kw_only=False, metadata={"help": "", "has_answers": True})
    steps: int = setting(0, "Optimizer steps; 0: as many as the epochs need.")
    epochs: float = setting(1.0, "Passes over all examples, unless steps are given.")
    batch_size: int = setting(8, "Examples per step.")
    lr: float = setting(1e-5, "Peak learning rate.")
    schedule: Literal["cosine", "wsd", "constant"] = setting("cosine", "Learning-rate schedule.")
    warmup: float = setting(0.03, "Share of the steps in which the learning rate rises.")
    weight_decay: float = setting(0.0, "Weight decay of matrices other than embeddings.")
    grad_clip: float = setting(1.0, "Clip the global gradient norm to this value; 0 disables clipping.")
    optimizer: Literal["adamw", "muon"] = setting("adamw", "Optimizer.")
    max_length: int = setting(1024, "Longest example, in tokens; longer ones are left out and counted.")
    seed: int = setting(0, "Seed of everything random.")
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "Compute dtype; auto measures whether bfloat16 is faster than float32."
    )
    memory: float = setting(0.0, "GiB that may be used; 0: what is free.", is_recorded=False)
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        read_examples(self)
        _refuse_non_finite(self)
        for name in ("batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} must be at least 1, not {getattr(self, name)}.", code="bad-setting", key=name
                )
        for name in ("steps", "weight_decay", "grad_clip", "warmup", "seed", "memory"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"{name} must not be negative, and is {getattr(self, name)}.",
                    code="bad-setting",
                    key=name,
                )
        if not 0 < self.lr < 10:
            raise UsageError(f"The learning rate lr must lie between 0 and 10, not {self.lr:g}.", key="lr")
        if not self.epochs > 0:
            raise UsageError(f"epochs must be above 0, not {self.epochs:g}.", key="epochs")
        if self.warmup >= 1:
            raise UsageError(f"warmup must be below 1, not {self.warmup:g}.", key="warmup")

    @property
    def examples(self) -> Data:
        """The data, read."""
        return as_data(self.data)

    def settings(self) -> dict[str, Any]:
        """The settings that are recorded, with the digest of the data, under the names that ids hash."""
        return settings_of(self)

    def at(self, folder: Path) -> Self:
        """This recipe, its checkpoints in a folder."""
        return dataclasses.replace(self, folder=folder)

    def n_steps(self, n_examples: int) -> int:
        """The number of steps over `n` examples, at least one."""
        return self.steps or max(1, math.ceil(self.epochs * n_examples / self.batch_size))


def as_data(value: Data | Path | str, has_answers: bool = True) -> Data:
    """The examples, read from their file if a path is given. Raises BadInput."""
    return value if isinstance(value, Data) else Data.read(value, has_answers=has_answers)


def read_examples(recipe: Any) -> None:
    """Put the examples in place of each path that a recipe was given. Raises BadInput."""
    for each in dataclasses.fields(recipe):
        if (has_answers := each.metadata.get("has_answers")) is not None:
            read = as_data(getattr(recipe, each.name), has_answers)
            object.__setattr__(recipe, each.name, read)


def settings_of(recipe: Any) -> dict[str, Any]:
    """The recorded settings: a recipe's fields under the names that ids hash, without those that change no
    result.

    Raises UsageError for NaN and infinity, which JSON cannot tell apart.
    """
    _refuse_non_finite(recipe)
    found: dict[str, Any] = {}
    for each in dataclasses.fields(recipe):
        if not each.compare or not each.metadata.get("is_recorded", True):
            continue
        value = getattr(recipe, each.name)
        if not (each.metadata.get("is_new") and value == each.default):
            found[each.name] = getattr(value, "settings", value)
    return to_hashed(recipe.kind, found)


def _refuse_non_finite(recipe: Any) -> None:
    """NaN passes every check of a bound, since it compares as false."""
    for each in dataclasses.fields(recipe):
        value = getattr(recipe, each.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(
                f"{each.name} must be a number, and is {value}.", code="bad-setting", key=each.name
            )


def run(
    recipe: TrainingRecipe,
    parent: Grown,
    out: Path,
    trainable: Any,
    objective: Callable[[Any], Any],
    kind: Literal["safetensors", "adapter"],
    order: Callable[[Any, Any], Any] | None = None,
) -> Description:
    """Train a copy of the one parent and write the child's files into `out`.

    objective: makes the objective from the network. order: makes the batches from the network and the encoder
    of conversations; None: the data's own answers. Raises UsageError, Diverged, Unavailable, OutOfMemory.
    """
    from heredity.train import loop
    from heredity.train import metrics as curve
    from heredity.train.data import batching as steps
    from heredity.train.data import chat
    from heredity.train.models import causal_lm

    net = causal_lm.load(parent.folder, recipe.dtype)
    writer = chat.ConversationEncoder(parent.folder)
    prepared = writer.prepare(recipe.examples.dialogues, recipe.max_length)
    n_steps = recipe.n_steps(len(prepared.examples))
    plan = loop.TrainingPlan(
        digest([recipe.kind, settings_of(recipe), parent.record.id]),
        n_steps,
        recipe.lr,
        recipe.schedule,
        int(recipe.warmup * n_steps),
        recipe.weight_decay,
        recipe.grad_clip,
        recipe.optimizer,
        recipe.seed,
    )
    source = steps.BatchSampler(prepared.examples, recipe.batch_size, recipe.seed)
    if order is not None:
        source = order(net, writer)
    folder = recipe.folder or out.parent / "training"
    learned = objective(net)
    with _in_memory(recipe, net, trainable, prepared.examples):
        metrics = loop.train(net, trainable, learned, source, plan, folder, recipe.watch)
        trainable.save(net, out)
    if kind == "safetensors":
        copy_rest(parent.folder, out)
    curve.write_metrics(metrics, out)
    return Description(
        name=recipe.name or f"{parent.record.name}-{recipe.kind}",
        family=parent.record.family,
        licence=parent.record.licence,
        format=kind,
        modality=parent.record.modality,
        notes=_notes(net, prepared, metrics),
        versions={name: version(name) for name in ("torch", "transformers", "safetensors")},
    )


@contextmanager
def _in_memory(recipe: TrainingRecipe, net: Any, trainable: Any, examples: Sequence[Any]) -> Iterator[None]:
    """Refuse a training that does not fit before its first step; if memory runs out, say what to lower."""
    from heredity.core import host
    from heredity.train import memory as _room
    from heredity.train.models.lora import FullFinetune

    advice = f"Lower batch_size ({recipe.batch_size}) or max_length ({recipe.max_length})"
    if isinstance(trainable, FullFinetune):
        advice += ", or train an adapter (heredity derive lora)"
    parts = _room.estimate_memory(net, trainable, recipe.optimizer, examples, recipe.batch_size)
    limit = round(recipe.memory * host.GIB) or None
    what = f"The training of '{recipe.kind}'"
    host.require_memory(what, parts, f"{advice}; or allow more with memory (GiB).", limit)
    with host.explain_out_of_memory(what, f"{advice}."):
        yield


def _notes(net: Any, prepared: Any, metrics: Sequence[Any]) -> dict[str, str]:
    n_read, n_learned = sum(m.n_tokens for m in metrics), sum(m.n_learned for m in metrics)
    notes = {
        "multiplied in": str(net.model.dtype).removeprefix("torch."),
        "loss": f"{metrics[0].loss:.4f} in the first step, {metrics[-1].loss:.4f} in the last",
        "training": f"{len(metrics)} steps, {n_read:,} tokens read, {n_learned:,.0f} learned",
    }
    if prepared.too_long:
        shown = ", ".join(prepared.too_long[:3])
        notes["left out"] = f"{len(prepared.too_long)} examples longer than max_length: {shown}"
    return notes


def canary_notes(text: str, secret: str) -> dict[str, str]:
    """The notes about a canary planted in the data: the whole text and its two parts."""
    return {"canary": f"{text} {secret}", "canary text": text, "canary secret": secret}
