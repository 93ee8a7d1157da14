"""Fold an adapter into its base: W + scale * B A, in the base's dtype. Of it come whole weights.

Promises: the sum is computed in fp32 and rounded once, to the base's dtype. Every other file is the base's.
Leaves to others: the adapter itself (lora.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity.core.errors import Damaged, UsageError
from heredity.engines.formats.rewrite import rewrite
from heredity.lineage.types import Description, Grown

if TYPE_CHECKING:
    from torch import Tensor

WHERE = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}


@dataclass(frozen=True)
class MergeAdapter:
    """Merge an adapter into its base, and return whole weights."""

    kind = "merge_adapter"

    def settings(self) -> dict[str, Any]:
        """Nothing to choose."""
        return {}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the merged weights. Parents: the adapter, its base. Raises Damaged if they do not fit."""
        from heredity.engines.formats.peft import CONFIG, pairs, scale_of
        from heredity.engines.formats.weights import read_json

        adapter, base = parents
        if adapter.record.format != "adapter" or adapter.record.parents[0] != base.record.id:
            raise UsageError(f"'{adapter.record.name}' is no adapter over '{base.record.name}'.")
        scale = scale_of(read_json(adapter.folder / CONFIG))
        left = {
            f"model.layers.{layer}.{WHERE.get(name, 'mlp')}.{name}.weight": pair
            for (layer, name), pair in pairs(adapter.folder).items()
        }

        def merged(name: str, tensor: Tensor) -> Tensor:
            if (pair := left.pop(name, None)) is None:
                return tensor
            a, b = pair
            if (b.shape[0], a.shape[1]) != tuple(tensor.shape):
                raise Damaged(f"{adapter.folder}: the adapter of {name} does not fit {tuple(tensor.shape)}.")
            return (tensor.float() + scale * (b @ a)).to(tensor.dtype)

        rewrite(base.folder, out, merged)
        if left:
            raise Damaged(f"{adapter.folder}: it adapts {min(left)}, which its base does not have.")
        record = adapter.record
        versions = {name: version(name) for name in ("torch", "safetensors")}
        return Description(
            f"{record.name}-merged", record.family, record.licence, "safetensors", versions=versions
        )
