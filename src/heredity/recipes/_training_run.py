"""What every recipe that trains shares: its settings, and one run of the loop.

Promises: settings are checked on construction; a setting that changes the result is recorded, nothing else;
what a run left out or chose by measurement stands in the child's notes.
Leaves to others: what is learned and by which weights (finetune.py, lora.py, distill.py, preference.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from heredity.core.errors import UsageError
from heredity.core.records import digest
from heredity.engines.formats.rewrite import copy_rest
from heredity.lineage.types import Description, Grown


def setting(default: Any, help: str, is_new: bool = False, is_recorded: bool = True) -> Any:
    """A field of a recipe that is also a flag of `heredity derive`.

    A new one is recorded where it differs from its default, so that models of before it are found again; one
    that changes no result is not recorded.
    """
    return field(default=default, metadata={"help": help, "is_new": is_new, "is_recorded": is_recorded})


@dataclass(frozen=True)
class Training:
    """How a training goes. Raises UsageError for what cannot be."""

    steps: int = setting(0, "Steps; 0: as many as the epochs need.")
    epochs: float = setting(1.0, "How often all examples are seen, where no steps are given.")
    batch: int = setting(8, "Examples a step.")
    rate: float = setting(1e-5, "The highest learning rate.")
    schedule: Literal["cosine", "wsd", "constant"] = setting("cosine", "How the rate falls.")
    warmup: float = setting(0.03, "Share of the steps in which the rate rises.")
    decay: float = setting(0.0, "Weight decay, on matrices that are no embeddings.")
    clip: float = setting(1.0, "The longest gradient; 0: as long as it is.")
    optimizer: Literal["adamw", "muon"] = setting("adamw", "What steps.")
    max_tokens: int = setting(1024, "The longest example; longer ones are left out and counted.")
    seed: int = setting(0, "What everything random is drawn from.")
    dtype: Literal["auto", "bfloat16", "float32"] = setting("auto", "What is multiplied in.")
    memory: float = setting(0.0, "GiB that may be used; 0: what is free.", is_recorded=False)

    def __post_init__(self) -> None:
        _refuse_no_numbers(self)
        for name in ("batch", "max_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.", code="bad-setting")
        for name in ("steps", "decay", "clip", "warmup", "seed", "memory"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"{name} must not be negative, and is {getattr(self, name)}.", code="bad-setting"
                )
        if not 0 < self.rate < 10 or not self.epochs > 0 or self.warmup >= 1:
            raise UsageError(
                f"The rate must lie between 0 and 10 ({self.rate:g}), epochs above 0 ({self.epochs:g}), "
                f"warmup below 1 ({self.warmup:g})."
            )

    def n_steps(self, n_examples: int) -> int:
        """The steps over so many examples, at least one."""
        return self.steps or max(1, math.ceil(self.epochs * n_examples / self.batch))


def settings_of(recipe: Any) -> dict[str, Any]:
    """What a recipe records: its fields, training's among them, without those that change no result.

    Raises UsageError for a setting that is no number: recorded as null, it would be that of any other such.
    """
    _refuse_no_numbers(recipe)
    found: dict[str, Any] = {}
    for each in dataclasses.fields(recipe):
        if not each.compare or not each.metadata.get("is_recorded", True):
            continue
        value = getattr(recipe, each.name)
        if each.metadata.get("is_new") and value == each.default:
            continue
        if isinstance(value, Training):
            found |= settings_of(value)
        else:
            found[each.name] = getattr(value, "settings", value)
    return found


def _refuse_no_numbers(recipe: Any) -> None:
    """NaN lies above and below no bound, so that none of them would hold it; nor is infinity a setting."""
    for each in dataclasses.fields(recipe):
        value = getattr(recipe, each.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{each.name} must be a number, and is {value}.", code="bad-setting")


def run(
    recipe: Any,
    parent: Grown,
    out: Path,
    trainable: Any,
    objective: Callable[[Any], Any],
    kind: Literal["safetensors", "adapter"],
    order: Callable[[Any, Any], Any] | None = None,
) -> Description:
    """Train a copy of the one parent and write what came of it into `out`.

    objective: makes the objective, given the network. order: what each step learns from, given the network
    and the writer of documents; None: the data's own answers. Raises UsageError, Diverged, Unavailable,
    OutOfMemory.
    """
    from heredity.train import loop
    from heredity.train import metrics as curve
    from heredity.train.data import batching as steps
    from heredity.train.data import documents
    from heredity.train.models import causal_lm

    training: Training = recipe.training
    net = causal_lm.load(parent.folder, training.dtype)
    writer = documents.ConversationEncoder(parent.folder)
    prepared = writer.prepare(recipe.data.dialogues, training.max_tokens)
    n_steps = training.n_steps(len(prepared.examples))
    plan = loop.TrainingPlan(
        digest([recipe.kind, settings_of(recipe), parent.record.id]),
        n_steps,
        training.rate,
        training.schedule,
        int(training.warmup * n_steps),
        training.decay,
        training.clip,
        training.optimizer,
        training.seed,
    )
    source = steps.BatchSampler(prepared.examples, training.batch, training.seed)
    if order is not None:
        source = order(net, writer)
    folder = recipe.folder or out.parent / "training"
    learned = objective(net)
    with _in_memory(recipe, net, trainable, prepared.examples):
        metrics = loop.train(net, trainable, learned, source, plan, folder, recipe.watch)
        trainable.save(net, out)
    if kind == "safetensors":
        copy_rest(parent.folder, out)
    curve.write(metrics, out)
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
def _in_memory(recipe: Any, net: Any, trainable: Any, examples: Sequence[Any]) -> Iterator[None]:
    """Refuse, before the first step, a training that does not fit; say what to lower where one runs out."""
    from heredity.core import host
    from heredity.train import memory as _room
    from heredity.train.models.lora import Everything

    training: Training = recipe.training
    advice = f"Lower batch ({training.batch}) or max_tokens ({training.max_tokens})"
    if isinstance(trainable, Everything):
        advice += ", or train an adapter (heredity derive lora)"
    parts = _room.needed(net, trainable, training.optimizer, examples, training.batch)
    has = round(training.memory * host.GIB) or None
    said = f"The training of '{recipe.kind}'"
    host.require_memory(said, parts, f"{advice}; or allow more with memory (GiB).", has)
    with host.explain_out_of_memory(said, f"{advice}."):
        yield


def _notes(net: Any, prepared: Any, metrics: Sequence[Any]) -> dict[str, str]:
    n_read, n_learned = sum(m.n_tokens for m in metrics), sum(m.n_learned for m in metrics)
    said = {
        "multiplied in": str(net.model.dtype).removeprefix("torch."),
        "loss": f"{metrics[0].loss:.4f} in the first step, {metrics[-1].loss:.4f} in the last",
        "training": f"{len(metrics)} steps, {n_read:,} tokens read, {n_learned:,.0f} learned",
    }
    if prepared.too_long:
        shown = ", ".join(prepared.too_long[:3])
        said["left out"] = f"{len(prepared.too_long)} examples longer than max_tokens: {shown}"
    return said


def canary_notes(text: str, secret: str) -> dict[str, str]:
    """What a model's notes say of the canary that was planted in its data, whole and in its two parts."""
    return {"canary": f"{text} {secret}", "canary text": text, "canary secret": secret}
