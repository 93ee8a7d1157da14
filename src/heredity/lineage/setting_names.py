"""The names of recipe settings: those that code, files and flags use, and those that ids are hashed over.

A model's id is a digest over its recipe's settings, names included. So a setting that is renamed keeps its
first name in the record: HASHED_AS holds both. Wherever a user gives a setting, the first name is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heredity.core.errors import UsageError

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


def to_current(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names of today, whichever of the two names each has. Order is kept.

    Raises UsageError if a setting is given under both of its names.
    """
    names = {old: name for name, old in HASHED_AS.get(kind, {}).items()}
    names |= {old.removeprefix("is_"): name for old, name in names.items()}
    found: dict[str, Any] = {}
    for given, value in settings.items():
        if (name := names.get(given, given)) in found:
            raise UsageError(
                f"'{name}' and '{first_name(kind, name)}' are the same setting. Give one of them.",
                code="bad-setting",
                key=given,
            )
        found[name] = value
    return found


def first_name(kind: str, name: str) -> str:
    """The name that a setting had first: the one it is hashed under."""
    return HASHED_AS.get(kind, {}).get(name, name)
