"""Round the weights to fewer bits, as a GGUF that llama.cpp, Ollama and others load as it is.

Matrices in the format asked for, blocks of 32 numbers with a shared scale; in 4 and 5 bits the embedding and
the head keep 8. The torch engine asks the child with these weights rounded once more, to bf16; exactly they
answer as `llamacpp:NAME`, in llama.cpp's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from heredity.errors import Unavailable
from heredity.lineage import Description, Grown
from heredity.recipes._tuned import setting, settings_of

EXAMPLE = "heredity derive quantize smollm2-135m-instruct --to q4_0"


@dataclass(frozen=True)
class Quantize:
    """One parent as a GGUF in `to`."""

    to: Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16", "f16", "f32"] = setting(
        "q8_0", "The format of its matrices."
    )
    name: str = field(default="", compare=False)

    kind = "quantize"

    def settings(self) -> dict[str, Any]:
        """The format."""
        return settings_of(self)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write one GGUF file. Raises Refused for an architecture or tokenizer that is not known here."""
        try:
            from heredity.recipes import _gguf_write
        except ImportError as error:
            raise Unavailable(
                "A GGUF needs torch and the gguf package: pip install 'heredity[torch]'"
            ) from error
        (parent,) = parents
        said = parent.record
        name, path = self.name or f"{said.name}-{self.to}", out / "model.gguf"
        _gguf_write.write(parent.folder, path, self.to, said.family)  # a name is not part of what it is
        notes = {"size": f"{path.stat().st_size:,} bytes; the parent's {_weight(parent.folder):,}"}
        versions = {each: version(each) for each in ("gguf", "numpy")}
        return Description(name, said.family, said.licence, "gguf", notes=notes, versions=versions)


def _weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


DERIVES = Quantize
