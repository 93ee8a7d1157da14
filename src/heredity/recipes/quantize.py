"""Round the weights to fewer bits, as a GGUF or int8.

GGUF, which llama.cpp, Ollama and others load: matrices in the chosen format, in blocks of 32 numbers with a
shared scale. At four and five bits the embedding and the head keep eight. The torch engine asks the child
with these weights rounded once more, to bf16; exactly they answer as `llamacpp:NAME`, in llama.cpp's own
arithmetic.

int8: safetensors whose layers' matrices are whole numbers with one scale an output; embedding and head stay.
The torch engine multiplies them as whole numbers, what comes in rounded to int8 by token (dynamic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from heredity.core.errors import Unavailable
from heredity.lineage.types import Description, Grown
from heredity.recipes import DerivableRecipe, setting


@dataclass(frozen=True)
class Quantize(DerivableRecipe):
    """One parent with its weights rounded to the type `to`."""

    to: Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16", "f16", "f32", "int8"] = setting(
        "q8_0", "The format of its matrices."
    )
    name: str = field(default="", compare=False)

    kind = "quantize"
    EXAMPLE = "heredity derive quantize smollm2-135m-instruct --to q4_0"

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write one GGUF file, or int8 safetensors.

        Raises Refused or Unavailable for an architecture or tokenizer that is not known here.
        """
        (parent,) = parents
        record = parent.record
        name = self.name or f"{record.name}-{self.to}"
        form: Literal["int8", "gguf"] = "int8" if self.to == "int8" else "gguf"
        packages = _write_int8(parent, out) if form == "int8" else _write_gguf(parent, out, self.to)
        notes = {"size": f"{_weight(out):,} bytes; the parent's {_weight(parent.folder):,}"}
        versions = {each: version(each) for each in packages}
        return Description(name, record.family, record.licence, form, notes=notes, versions=versions)


def _write_gguf(parent: Grown, out: Path, form: str) -> tuple[str, ...]:
    try:
        from heredity.engines.formats import gguf_write
    except ImportError as error:
        raise Unavailable("A GGUF needs torch and the gguf package: pip install 'heredity[torch]'") from error
    gguf_write.write_gguf(
        parent.folder, out / "model.gguf", form, parent.record.family
    )  # no name: the same bytes
    return "gguf", "numpy"


def _write_int8(parent: Grown, out: Path) -> tuple[str, ...]:
    from heredity.engines.formats import int8_write

    int8_write.write_int8(parent.folder, out)
    return "torch", "safetensors"


def _weight(folder: Path) -> int:
    return sum(path.stat().st_size for each in ("*.safetensors", "*.gguf") for path in folder.glob(each))


DERIVES = Quantize
