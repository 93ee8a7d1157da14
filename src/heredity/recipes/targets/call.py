"""Record a Python function as a target: "call:package.module:function". It is neither copied nor called.

Promises: the record holds the function's name and a digest of its file, so that a changed function is
another model. A missing function or wrong parameters are errors here, not later in the study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heredity.engines import call
from heredity.lineage.types import Description, Grown, StoredModels

NOTE = "a function of the user's: what stands behind it is not recorded"
WRAPS_MODEL = False


@dataclass(frozen=True)
class CallTarget:
    """A function, with the digest of its source."""

    function: str
    source: str

    kind = "call"

    def settings(self) -> dict[str, Any]:
        """The name, the source's digest, and the engine."""
        return {"engine": "call", "function": self.function, "source": self.source}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Describe the function. No file is written."""
        return Description(f"call:{self.function}", "call", "not stated", "remote", notes={"about": NOTE})


def resolve(store: StoredModels, ref: str) -> tuple[CallTarget, list[Grown]]:  # noqa: ARG001 (no parent)
    """The recipe of "call:MODULE:FUNCTION". Raises UsageError if the function does not exist."""
    name = ref.removeprefix("call:")
    function = call.find(name)
    call.Function(name, function)
    return CallTarget(name, call.source_of(function)), []


def keep(function: Callable[..., Any]) -> str:
    """A reference to a function given as a value. This process can resolve it from now on."""
    return f"call:{call.keep(function)}"
