"""Fold an adapter into its base: W + scale * B A. The child has whole weights.

Promises: the sum is computed in fp32 and rounded once. A small change may fall between two numbers of
bfloat16. The note `rounding` has the norm of the rounding as a share of that of the adapter's change. Every
other file is the base's; an adapter with a tokenizer of its own brings it. Any architecture is merged:
modules are found by name.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heredity.core.errors import Unavailable, UsageError
from heredity.core.progress import Watch, about
from heredity.engines import base_of
from heredity.engines.chat import has_tokenizer
from heredity.formats.safetensors_io import replace_json, rewrite
from heredity.lineage.types import Description, Grown

if TYPE_CHECKING:
    from torch import Tensor

    from heredity.formats.peft import Adapter

# The files of a tokenizer and of its chat template.
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class MergeAdapter:
    """Merge an adapter into its base, and return whole weights.

    dtype: of all merged weights ("float32", "bfloat16", "float16"); "" keeps that of each of the base's.
    """

    dtype: str = ""
    watch: Watch | None = field(default=None, compare=False)

    kind = "merge_adapter"

    def settings(self) -> dict[str, Any]:
        """The dtype, if one was chosen."""
        return {"dtype": self.dtype} if self.dtype else {}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the merged weights. Parents: the adapter, its base. Raises Damaged if they do not fit."""
        adapter, base = parents
        if adapter.record.format != "adapter" or base_of(adapter.record) != base.record.id:
            raise UsageError(f"'{adapter.record.name}' is no adapter over '{base.record.name}'.")
        watch = about(self.watch, adapter.record.name)
        rounding = merge(adapter.folder, base.folder, out, self.dtype, adapter.record.name, watch)
        record = adapter.record
        return Description(
            f"{record.name}-merged{f'-{self.dtype}' if self.dtype else ''}",
            record.family,
            record.licence,
            "safetensors",
            notes={"rounding": f"{rounding:.3g} of the norm of the adapter's change"},
            versions={name: version(name) for name in ("torch", "safetensors")},
        )


def merge(
    adapter: Path, base: Path, out: Path, dtype: str = "", name: str = "", watch: Watch | None = None
) -> float:
    """Write the whole weights of an adapter's folder over a base's folder into `out`.

    name: of the adapter, for an error. Returns the norm of the rounding as a share of that of the adapter's
    change. Raises Unavailable for an activated LoRA.
    """
    from heredity.formats.adapted import tensor_names
    from heredity.formats.peft import HEAD, read_adapter
    from heredity.formats.weights import CONFIG, read_json

    names, config = tensor_names(base), read_json(base / CONFIG)
    is_tied = bool(config.get("tie_word_embeddings", True)) and HEAD not in names
    fitted = read_adapter(adapter).fitted(names, is_tied, adapter, config.get("model_type"))
    if fitted.invocation:
        raise Unavailable(
            f"'{name or adapter.name}' is an activated LoRA (aLoRA), which is not merged: it acts on a text"
            " only from its invocation on, and whole weights would change all of it. Use it over its base, or"
            " write it for PEFT: heredity export NAME --to adapter DIR"
        )
    for module, low in fitted.low_rank.items():
        if low.bias is not None and f"{module}.bias" not in names:
            raise Unavailable(f"{adapter}: lora_bias has no place in whole weights: {module} has no bias.")
    added = _own_head(fitted, names, base) if is_tied else {}
    changes: dict[str, object] = {"dtype": dtype} if dtype else {}
    sums = _DeltaSums(fitted, dtype)
    rewrite(base, out, sums.changed, {name: sums.cast(each) for name, each in added.items()}, watch)
    if added:
        changes["tie_word_embeddings"] = False
    rows = {len(each) for name, each in fitted.whole.items() if name == _embedding(names)}
    if rows and config.get("vocab_size") not in rows:
        changes["vocab_size"] = rows.pop()
    if changes:
        replace_json(out / CONFIG, _without_old_dtype(config, dtype) | changes)
    if has_tokenizer(adapter):
        bring_tokenizer(adapter, out)
    return sums.rounding


class _DeltaSums:
    """The tensors of the base with an adapter merged, and the squares of its change and of the rounding."""

    def __init__(self, adapter: Adapter, dtype: str) -> None:
        self._adapter, self._dtype = adapter, dtype
        self._change = self._rounding = 0.0

    @property
    def rounding(self) -> float:
        """The norm of the rounding as a share of that of the change."""
        return math.sqrt(self._rounding / self._change) if self._change else 0.0

    def cast(self, tensor: Tensor) -> Tensor:
        """A tensor in the dtype that was chosen."""
        import torch

        return (
            tensor.to(getattr(torch, self._dtype)) if self._dtype and tensor.is_floating_point() else tensor
        )

    def changed(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor to write under this name: summed in fp32 and rounded once."""
        module, _, kind = name.rpartition(".")
        if kind != "weight" or module not in self._adapter.low_rank:
            return self.cast(self._adapter.changed(name, tensor))
        whole = self._adapter.changed(name, tensor.float())
        merged = self.cast(whole) if self._dtype else whole.to(tensor.dtype)
        if whole.shape == tensor.shape:
            self._change += float((whole - tensor.float()).square().sum())
            self._rounding += float((merged.float() - whole).square().sum())
        return merged


def cast_folder(folder: Path, out: Path, dtype: str, watch: Watch | None = None) -> None:
    """Write the model in `folder` with every number rounded to `dtype`, into the empty folder `out`."""
    import torch

    from heredity.formats.weights import CONFIG, read_json

    kind: torch.dtype = getattr(torch, dtype)
    rewrite(folder, out, lambda _, each: each.to(kind) if each.is_floating_point() else each, watch=watch)
    replace_json(out / CONFIG, _without_old_dtype(read_json(folder / CONFIG), dtype) | {"dtype": dtype})


def _without_old_dtype(config: Mapping[str, object], dtype: str) -> dict[str, object]:
    """A configuration without the name that transformers 4 gave to the dtype, if there is another dtype."""
    return {key: value for key, value in config.items() if key != "torch_dtype" or not dtype}


def _embedding(names: set[str]) -> str:
    from heredity.formats.peft import embedding_of

    return embedding_of(names)


def _own_head(adapter: Adapter, names: set[str], base: Path) -> dict[str, Tensor]:
    """The head of a model that ties it to its embedding, where the adapter makes them two; else {}."""
    import torch

    from heredity.formats.peft import HEAD
    from heredity.formats.weights import TensorFiles

    module, embedding = HEAD.removesuffix(".weight"), _embedding(names)
    is_updated = embedding.removesuffix(".weight") in adapter.low_rank  # not the head, in PEFT's forward
    is_apart = is_updated or (embedding in adapter.whole and not adapter.keeps_ties)
    if not (is_apart or HEAD in adapter.whole or module in adapter.low_rank):
        return {}
    new = adapter.whole.get(embedding)
    is_one = adapter.keeps_ties and not is_updated and module not in adapter.low_rank
    if new is not None and is_one and torch.equal(adapter.whole.get(HEAD, new), new):
        return {}
    source = TensorFiles(base, torch.float32).read(embedding, as_stored=True)
    if HEAD not in adapter.whole and embedding in adapter.whole and adapter.keeps_ties:
        source = adapter.whole[embedding].to(source.dtype)
    return {HEAD: adapter.changed(HEAD, source).contiguous().clone()}


def bring_tokenizer(adapter: Path, out: Path) -> None:
    """Replace the base's tokenizer and template by those of the adapter."""
    for name in TOKENIZER:
        (out / name).unlink(missing_ok=True)
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)
