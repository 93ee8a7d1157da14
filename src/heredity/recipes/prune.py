"""Remove layers, evenly from the middle.

The child is a smaller start for a distillation, and of little use by itself.

Source: Men et al. 2024 (ShortGPT, 2403.03853) and Sreenivas et al. 2024 (Minitron, 2408.11796): the first and
last layers matter most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from heredity.core.errors import Refused, UsageError
from heredity.lineage.types import Description, Grown
from heredity.recipes import DerivableRecipe, setting

_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")


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

        from heredity.engines.formats.rewrite import copy_rest, read_all

        (parent,) = parents
        config = json.loads((parent.folder / "config.json").read_text("utf-8"))
        n_layers = int(config["num_hidden_layers"])
        kept = chosen(n_layers, self.layers or max(2, n_layers // 2))
        place = {old: new for new, old in enumerate(kept)}
        whole = read_all(parent.folder)
        if (n_found := len({found[2] for name in whole if (found := _LAYER.fullmatch(name))})) != n_layers:
            raise Refused(
                f"'{parent.record.name}' has {n_found} layers of a known name for the {n_layers} of its"
                f" config.json: none is left out. Known are decoders, whose weights are named layers.0, ...",
                code="layers-unknown",
            )
        copy_rest(parent.folder, out)
        tensors = {}
        for name, tensor in whole.items():
            found = _LAYER.fullmatch(name)
            if found is None:
                tensors[name] = tensor
            elif int(found[2]) in place:
                tensors[f"{found[1]}{place[int(found[2])]}{found[3]}"] = tensor.contiguous()
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        (out / "model.safetensors.index.json").unlink(missing_ok=True)
        config["num_hidden_layers"] = len(kept)
        if isinstance(config.get("layer_types"), list):
            config["layer_types"] = [config["layer_types"][old] for old in kept]
        (out / "config.json").unlink()  # a link to the parent's
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        record = parent.record
        name = self.name or f"{record.name}-pruned"
        notes = {"kept layers": ", ".join(map(str, kept))}
        versions = {"safetensors": version("safetensors")}
        return Description(name, record.family, record.licence, "safetensors", notes=notes, versions=versions)


def chosen(n_layers: int, n_kept: int) -> list[int]:
    """The layers that stay: first and last, and evenly between."""
    if not 2 <= n_kept <= n_layers:
        raise UsageError(
            f"Of {n_layers} layers between 2 and {n_layers} can be kept, not {n_kept}.", code="bad-setting"
        )
    return sorted({round(i * (n_layers - 1) / (n_kept - 1)) for i in range(n_kept)})


DERIVES = Prune
