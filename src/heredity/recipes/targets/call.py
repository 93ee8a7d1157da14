"""Record a Python function as a target: "call:package.module:function". Nothing is copied, nothing is asked.

Promises: the record holds the function's name and a digest of its file, so that a changed function is
another model. The function is looked up and its parameters are read at once, not in the study. Leaves to
others: calling it (engines/call.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heredity.engines import call
from heredity.lineage.store import Store
from heredity.lineage.types import Description, Grown

NOTE = "a function of the user's: what stands behind it is not recorded"
WRAPS_MODEL = False


@dataclass(frozen=True)
class CallTarget:
    """The function of this name, as its source is now."""

    function: str
    source: str

    kind = "call"

    def settings(self) -> dict[str, Any]:
        """The name, the source's digest, and the engine that answers."""
        return {"engine": "call", "function": self.function, "source": self.source}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:  # noqa: ARG002
        """Nothing to write: the function stays where it is."""
        return Description(f"call:{self.function}", "call", "not stated", "remote", notes={"about": NOTE})


def resolve(store: Store, ref: str) -> tuple[CallTarget, list[Grown]]:  # noqa: ARG001 (it has no parent)
    """The recipe that "call:MODULE:FUNCTION" means. Raises UsageError if the function does not exist."""
    name = ref.removeprefix("call:")
    function = call.find(name)
    call.Function(name, function)
    return CallTarget(name, call.source_of(function)), []


def keep(function: Callable[..., Any]) -> str:
    """The reference of a function given as a value, which this process can resolve from now on."""
    return f"call:{call.keep(function)}"
