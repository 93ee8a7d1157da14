"""A recipe whose models the engine of engine.py answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import heredity as h


@dataclass(frozen=True)
class Parrot(h.DerivableRecipe):
    """Records a parrot: a model without weights that says every word back."""

    marks: int = field(default=3, metadata={"help": "Exclamation marks behind every answer."})
    name: str = field(default="", compare=False)

    kind: ClassVar[str] = "parrot"

    def settings(self) -> dict[str, Any]:
        return {"engine": "parrot_cage", "marks": self.marks}

    def apply(self, parents: Sequence[h.Grown], out: Path) -> h.Description:
        return h.Description(self.name or "parrot", "parrot", "MIT", "remote")
