"""Remove layers, evenly from the middle.

The child is a smaller start for a distillation, and of little use by itself.

Source: Men et al. 2024 (ShortGPT, 2403.03853) and Sreenivas et al. 2024 (Minitron, 2408.11796): the first and
last layers matter most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import Refused, UsageError
from heredity.lineage.types import Description, Grown
from heredity.recipes import DerivableRecipe, setting

if TYPE_CHECKING:
    from torch import Tensor

# The lists of layers under the names that architectures of transformers give them.
_LAYER = re.compile(r"(|.*\.)(layers|h|blocks)(\.)(\d+)(\..*)")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Settings that give some layers another form by their number, and the value with which they do not.
_BY_NUMBER: dict[str, object] = {
    "decoder_sparse_step": 1, "mlp_only_layers": [], "first_k_dense_replace": 0, "moe_layers": [],
    "attn_layer_period": 1, "expert_layer_period": 1, "interleave_moe_layer_step": 1, "block_types": [],
    "attention_layers": [], "cross_attention_layers": [],
}  # fmt: skip


@dataclass(frozen=True)
class Prune(DerivableRecipe):
    """One parent with `layers` of its layers, in their order."""

    layers: int = setting(0, "How many layers are kept; 0: half of them, two at least.")
    name: str = field(default="", compare=False)

    kind = "prune"
    EXAMPLE = "heredity derive prune smollm2-135m-instruct --layers 15"

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the kept layers under new numbers. Raises UsageError for more than there are, or one."""
        from safetensors.torch import save_file

        from heredity.formats.safetensors_io import INDEX, copy_rest, read_all

        (parent,) = parents
        config = json.loads((parent.folder / "config.json").read_text("utf-8"))
        count = next((key for key in _COUNTS if key in config), None)
        _refuse_other_than_uniform(parent.record.name, config, count)
        n_layers = int(config[count or ""])
        kept = chosen(n_layers, self.layers or max(2, n_layers // 2))
        place = {old: new for new, old in enumerate(kept)}
        whole = read_all(parent.folder)
        if (n_found := len({match[4] for name in whole if (match := _LAYER.fullmatch(name))})) != n_layers:
            raise Refused(
                f"'{parent.record.name}' has {n_found} layers of a known name for the {n_layers} of its"
                f" config.json: none is left out. Known are decoders, whose weights are named layers.0, ..."
            )
        copy_rest(parent.folder, out)
        save_file(dict(_renumbered(whole, place)), out / "model.safetensors", metadata={"format": "pt"})
        (out / INDEX).unlink(missing_ok=True)
        config[count or ""] = len(kept)
        for key in ("layer_types", "no_rope_layers"):
            if isinstance(config.get(key), list) and len(config[key]) == n_layers:
                config[key] = [config[key][old] for old in kept]
        (out / "config.json").unlink()  # a link to the parent's
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        record = parent.record
        name = self.name or f"{record.name}-pruned"
        notes = {"kept layers": ", ".join(map(str, kept))}
        versions = {"safetensors": version("safetensors")}
        return Description(name, record.family, record.licence, "safetensors", notes=notes, versions=versions)


def _renumbered(whole: Mapping[str, Tensor], place: Mapping[int, int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the kept layers under their new numbers, and those outside of layers."""
    for name, tensor in whole.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            yield name, tensor
        elif int(match[4]) in place:
            yield f"{match[1]}{match[2]}.{place[int(match[4])]}{match[5]}", tensor.contiguous()


def _refuse_other_than_uniform(name: str, config: Mapping[str, object], count: str | None) -> None:
    """Raise Refused for a configuration without a number of layers, or with layers of several kinds."""
    if count is None:
        raise Refused(f"config.json of '{name}' has no number of layers.")
    shaped = [key for key, plain in _BY_NUMBER.items() if config.get(key) not in (None, plain)]
    if shaped:
        raise Refused(
            f"'{name}' has layers of several kinds ({shaped[0]} in config.json): under new numbers they would"
            " be read as others. heredity derive lora or quantize works."
        )


def chosen(n_layers: int, n_kept: int) -> list[int]:
    """The layers that stay: first and last, and evenly between."""
    if not 2 <= n_kept <= n_layers:
        raise UsageError(
            f"Of {n_layers} layers between 2 and {n_layers} can be kept, not {n_kept}.", code="bad-setting"
        )
    return sorted({round(i * (n_layers - 1) / (n_kept - 1)) for i in range(n_kept)})


DERIVES = Prune
