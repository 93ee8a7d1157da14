"""Round the weights to fewer bits: GGUF, int8, or groups (GPTQ).

GGUF, which llama.cpp, Ollama and others load: matrices in the chosen format, in blocks of 32 numbers with a
shared scale. At four and five bits the embedding and the head keep eight. The torch engine asks the child
with these weights rounded once more, to bf16; exactly they answer as `llamacpp:NAME`, in llama.cpp's own
arithmetic.

int8: safetensors whose layers' matrices are whole numbers with one scale an output; embedding and head stay.
The torch engine multiplies them as whole numbers, what comes in rounded to int8 by token (dynamic).

gptq4, gptq3: the layers' matrices in 4 or 3 bits, with a scale for each group of inputs. `data` calibrates
them (GPTQ, Frantar et al. 2022, 2210.17323). rtn4, rtn3: the same grid without calibration, each weight
rounded to nearest; of any architecture. Embedding, head and routers stay. The child holds the rounded
numbers as full-precision safetensors: it answers as a packed model would, and its files are NOT smaller
than the parent's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.core.errors import Unavailable, UsageError, how_to_install
from heredity.core.progress import Watch
from heredity.lineage.types import Description, Grown
from heredity.recipes import DerivableRecipe, setting
from heredity.recipes._training_run import as_data
from heredity.train.data.chat import Data

if TYPE_CHECKING:
    from torch import Tensor

    from heredity.formats.gptq import RoundingGrid

_GROUPED = {"gptq4": 4, "gptq3": 3, "rtn4": 4, "rtn3": 3}  # bits
_FEWEST = 256  # calibration tokens
_HELD_OUT = 8  # one sequence in so many measures the error instead


@dataclass(frozen=True)
class Quantize(DerivableRecipe):
    """One parent with its weights rounded to the type `to`."""

    to: Literal[
        "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16", "f16", "f32", "int8",
        "gptq4", "gptq3", "rtn4", "rtn3",
    ] = setting("q8_0", "The format of its matrices.")  # fmt: skip
    data: Data | Path | str | None = field(
        default=None,
        metadata={
            "help": "Calibration conversations, such as the model is used for (gptq4, gptq3).",
            "is_new": True,
        },
    )
    group_size: int = setting(128, "Inputs that share a scale (gptq, rtn).", is_new=True)
    symmetric: bool = setting(False, "No zero point of its own for each group (gptq, rtn).", is_new=True)
    act_order: bool = setting(
        True, "Round the inputs with the largest activations first (gptq).", is_new=True
    )
    damp: float = setting(0.01, "Share of the mean added to the Hessian's diagonal (gptq).", is_new=True)
    sequences: int = setting(32, "Sequences from the beginning of the data (gptq).", is_new=True)
    sequence_length: int = setting(512, "Tokens of a calibration sequence (gptq).", is_new=True)
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "Compute dtype of the calibration (gptq); auto takes the faster one.", is_new=True
    )
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)

    kind = "quantize"
    EXAMPLE = "heredity derive quantize smollm2-135m-instruct --to q4_0"

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "data", as_data(self.data))
        self.refuse_non_finite()
        if self.is_calibrated and self.data is None:
            raise UsageError(f"{self.to} is calibrated: give it data.", code="missing-key", key="data")
        bits = _GROUPED.get(self.to)
        for each in dataclasses.fields(self):
            if not each.metadata.get("is_new") or getattr(self, each.name) == each.default:
                continue
            is_of_grid = each.name in ("group_size", "symmetric")
            if not (self.is_calibrated or (bits and is_of_grid)):
                raise UsageError(
                    f"{each.name} has no effect on {self.to}.", code="bad-setting", key=each.name
                )
        for name in ("group_size", "sequences", "sequence_length"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1.", code="bad-setting", key=name)
        if not 0 < self.damp <= 1:
            raise UsageError(
                f"damp must be above 0 and at most 1, not {self.damp:g}.", code="bad-setting", key="damp"
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether it needs calibration data."""
        return self.to.startswith("gptq")

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write one GGUF file, int8 safetensors, or safetensors of grouped numbers.

        Raises Refused or Unavailable for an architecture or tokenizer that is not known here.
        """
        (parent,) = parents
        record = parent.record
        name = self.name or f"{record.name}-{self.to}"
        form: Literal["int8", "gguf", "safetensors"] = "gguf"
        notes: dict[str, str] = {}
        packages: tuple[str, ...]
        if self.to in _GROUPED:
            form, packages, notes = "safetensors", ("torch", "safetensors"), self._write_grouped(parent, out)
        elif self.to == "int8":
            from heredity.formats.int8 import write_int8
            from heredity.formats.weights import check_roundable, read_config

            check_roundable(read_config(parent.folder))
            write_int8(parent.folder, out, self.watch)
            form, packages = "int8", ("torch", "safetensors")
        else:
            try:
                from heredity.engines.chat import read_gguf_chat
                from heredity.formats import gguf_weights
            except ImportError as error:
                raise Unavailable(f"A GGUF needs torch and gguf. {how_to_install('torch')}") from error
            gguf_weights.write_gguf(
                parent.folder, out / "model.gguf", self.to, parent.record.family, read_gguf_chat, self.watch
            )
            packages = "gguf", "numpy"
        notes["size"] = f"{_weight(out):,} bytes; the parent's {_weight(parent.folder):,}"
        versions = {each: version(each) for each in packages}
        return Description(name, record.family, record.licence, form, notes=notes, versions=versions)

    def _write_grouped(self, parent: Grown, out: Path) -> dict[str, str]:
        """Write the rounded numbers in the parent's dtype, and return the notes about them."""
        from heredity.formats.gptq import RoundingGrid, round_to_nearest
        from heredity.formats.linear_layers import stored_matrices
        from heredity.formats.safetensors_io import rewrite

        matrices = stored_matrices(parent.folder)
        if self.is_calibrated and (experts := [name for name in matrices if ".experts." in name]):
            raise Unavailable(
                f"GPTQ does not calibrate experts, such as {experts[0]}. --to rtn4 rounds them."
            )
        grid = RoundingGrid(_GROUPED[self.to], self.group_size, self.symmetric)
        notes: dict[str, str] = {}
        known: dict[str, Tensor] = {}
        if self.data is not None:
            known = self._calibrated(parent, as_data(self.data), grid, notes)
        n_bits, n_weights = 0.0, 0

        def change(name: str, tensor: Tensor) -> Tensor:
            nonlocal n_bits, n_weights
            if name not in matrices:
                return tensor
            is_turned = matrices[name]  # (in, out); the grid has groups of inputs
            n_bits += grid.bits_per_weight(tensor.shape[0 if is_turned else 1]) * tensor.numel()
            n_weights += tensor.numel()
            if self.is_calibrated:
                return known.pop(name).to(tensor.dtype)
            rounded = round_to_nearest(tensor.t() if is_turned else tensor, grid)
            return (rounded.t() if is_turned else rounded).to(tensor.dtype)

        rewrite(parent.folder, out, change, watch=self.watch)
        packed = f"{n_bits / n_weights:.2f} bits a weight of {n_weights:,} if packed"
        notes["weights"] = f"{packed}; stored dequantized, so the files are not smaller"
        return notes

    def _calibrated(
        self, parent: Grown, data: Data, grid: RoundingGrid, notes: dict[str, str]
    ) -> dict[str, Tensor]:
        from heredity.formats.gptq import GptqSettings, calibrate, resolve_dtype

        tokens = _sequences(parent.folder, data, self.sequences, self.sequence_length)
        n_held_out, dtype = len(tokens) // _HELD_OUT, resolve_dtype(parent.folder, self.dtype)
        settings = GptqSettings(grid, self.damp, self.act_order)
        tensors = calibrate(parent.folder, tokens, n_held_out, settings, dtype, self.watch)
        used = f"{len(tokens) - n_held_out} sequences of {len(tokens[0])} tokens, in {dtype}"
        notes["calibration"] = used
        notes["damping"] = _damping(self.damp, tensors.damps)
        if n_held_out:
            mean = tensors.mean_error
            share = f"{mean.gptq:.3%} of the squared outputs on {n_held_out} held-out sequences"
            notes["output error"] = f"{share}; rounded to nearest {mean.nearest:.3%}"
        return tensors.weights


def _damping(asked: float, used: Sequence[float]) -> str:
    """The damping of the Hessians, and where more was needed than asked for."""
    raised = [damp for damp in used if damp > asked]
    share = f"{asked:g} of the mean diagonal"
    if not raised:
        return f"{share}, in all {len(used)} Hessians"
    n = f"{len(raised)} of {len(used)} Hessians"
    return f"{share}; raised to up to {max(raised):g} in {n}, which could not be inverted"


def _sequences(folder: Path, data: Data, n: int, length: int) -> list[tuple[int, ...]]:
    """The first conversations of the data as one stream of tokens, cut to at most `n` of one length."""
    from heredity.formats.linear_layers import number_of, read_settings
    from heredity.train.data.chat import ConversationEncoder

    encoder, stream = ConversationEncoder(folder), list[int]()
    length = min(length, number_of(read_settings(folder), "max_position_embeddings") or length)
    for dialogue in data.dialogues:
        stream += encoder.example(dialogue).document.tokens
        if len(stream) >= n * length:
            break
    length = min(length, len(stream))
    sequences = [
        tuple(stream[at : at + length]) for at in range(0, min(len(stream), n * length) - length + 1, length)
    ]
    if (n_tokens := len(sequences) * length) < _FEWEST:
        raise UsageError(
            f"The data gives {n_tokens} tokens to calibrate on; at least {_FEWEST} are needed, and some"
            " thousands are better."
        )
    return sequences


def _weight(folder: Path) -> int:
    return sum(path.stat().st_size for each in ("*.safetensors", "*.gguf") for path in folder.glob(each))


DERIVES = Quantize
