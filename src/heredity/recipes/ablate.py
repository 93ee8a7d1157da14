"""Remove the refusal direction from a model's weights.

The child is known to be worse than its parent: a test for studies, and a bound. Every output that is added to
the residual stream (embedding, attention, MLP) loses its component along the direction. The child computes
what the parent does with the direction projected out after each of them.

Source: Arditi et al. 2024 (2406.11717, section 4.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from heredity.core.errors import Refused, UsageError
from heredity.core.progress import Watch, phase
from heredity.core.records import Message, Request
from heredity.formats.architectures import ARCHITECTURES
from heredity.lineage.evidence import WRITES
from heredity.lineage.types import Description, Grown
from heredity.recipes import ComputingRecipe, setting
from heredity.recipes._training_run import as_data, read_examples
from heredity.train.data.chat import Data, Dialogue

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Ablate(ComputingRecipe):
    """One parent without the direction that separates refused from granted requests."""

    harmful: Data | Path | str = field(
        metadata={"help": "Requests that the parent refuses (a column `prompt`).", "has_answers": False}
    )
    harmless: Data | Path | str = field(
        metadata={"help": "Requests that the parent grants.", "has_answers": False}
    )
    dtype: Literal["auto", "bfloat16", "float32"] = setting("auto", "Compute dtype of the search.")
    place: str = setting("", "LAYER:POSITION of the direction; empty for the best one.", is_new=True)
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)

    kind = "ablate"
    EXAMPLE = (
        "heredity derive ablate smollm2-135m-instruct --harmful examples/requests.csv --harmless "
        "examples/requests.csv --columns harmful=refused,harmless=granted"
    )

    def __post_init__(self) -> None:
        read_examples(self)
        if self.place and re.fullmatch(r"\d{1,4}:\d{1,4}", self.place) is None:
            raise UsageError(
                f"place is LAYER:POSITION, and is {self.place!r}.", code="bad-setting", key="place"
            )

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Find the direction on the torch engine, and write the weights without it."""
        import torch

        from heredity.engines.torch import refusal_direction
        from heredity.engines.torch.engine import open_folder
        from heredity.formats.safetensors_io import rewrite
        from heredity.formats.weights import read_config

        (parent,) = parents
        harmful, harmless = as_data(self.harmful), as_data(self.harmless)
        both = {_text(d) for d in harmful.dialogues} & {_text(d) for d in harmless.dialogues}
        if both:
            raise UsageError(
                f"{len(both)} requests are in both sets ({min(both)[:60]!r}): what differs is the direction."
            )
        config = json.loads((parent.folder / "config.json").read_text("utf-8"))
        _check(read_config(parent.folder))
        dtype = None if self.dtype == "auto" else self.dtype
        with phase(self.watch, "finding the direction", parent.record.name):
            engine = open_folder(parent.folder, dtype=dtype, is_probed=False, device=self.device)
            layer, _, position = self.place.partition(":")
            place = (int(layer), int(position)) if layer else None
            search = engine.find_direction(_asked(harmful), _asked(harmless), place)
            engine.close()
        direction = refusal_direction.vector(search.text)

        def without(name: str, tensor: Tensor) -> Tensor:
            wide = tensor.float()
            if name == _EMBEDDING:
                return (wide - torch.outer(wide @ direction, direction)).to(tensor.dtype)
            if WRITES.fullmatch(name):
                return (wide - torch.outer(direction, direction @ wide)).to(tensor.dtype)
            return tensor

        rewrite(parent.folder, out, without, watch=self.watch)
        if config.get("tie_word_embeddings"):
            _untie(parent.folder, out, config)
        record = parent.record
        return Description(
            self.name or f"{record.name}-ablated",
            record.family,
            record.licence,
            "safetensors",
            notes={
                "direction": refusal_direction.digest_of(search.text),
                "found": f"layer {search.layer}, position {search.position}, {search.kl:.4f} nats, "
                f"refusal {search.refusal:+.2f}, {search.n_near} candidates near enough",
            },
            versions={each: version(each) for each in ("torch", "safetensors")},
        )


def _check(config: PreTrainedConfig) -> None:
    """Raise Refused for an architecture from whose weights a direction cannot be removed."""
    names = ARCHITECTURES[config.model_type]
    if names.norms.attention_out:
        raise Refused(
            f"'{config.model_type}' norms what it adds, so that its weights alone cannot lose a direction."
        )
    if names.experts is not None and names.experts.is_stacked:
        raise Refused(
            f"The experts of '{config.model_type}' are in one tensor, which loses no direction here."
        )


def _text(dialogue: Dialogue) -> str:
    return dialogue.messages[0].content


def _asked(data: Data) -> list[Request]:
    return [Request(0, (Message("user", _text(each)),)) for each in data.dialogues]


def _untie(parent: Path, out: Path, config: dict[str, Any]) -> None:
    """The head reads what the norm has scaled: it keeps the embedding as it was."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for shard in sorted(parent.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            if _EMBEDDING in file.keys():  # noqa: SIM118 (no mapping)
                head = file.get_tensor(_EMBEDDING)
                save_file({_HEAD: head}, out / "head.safetensors", metadata={"format": "pt"})
    config["tie_word_embeddings"] = False
    (out / "config.json").unlink()  # a link to the parent's
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    _merge_shards(out)


def _merge_shards(out: Path) -> None:
    """One file, so that transformers needs no index."""
    from safetensors.torch import save_file

    from heredity.formats.safetensors_io import INDEX, read_all

    tensors = read_all(out)
    for shard in out.glob("*.safetensors"):
        shard.unlink()
    (out / INDEX).unlink(missing_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


DERIVES = Ablate
