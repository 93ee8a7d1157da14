"""How a child is made: one file a recipe, each a frozen value with one method `apply(parents, out)`.

A recipe is a lineage.Recipe: `kind` (the file's name), `settings()` and `apply`, which writes the child's
files into an empty folder and returns a lineage.Description.

A recipe that `heredity derive` offers has DERIVES, its dataclass: its fields are the flags, their `help` the
documentation (_tuned.setting), and `PARENTS`, in words, where it takes other than one.

Promises (every recipe): nothing but `out` and its own downloads is written; nothing random without a seed in
the settings; torch is imported inside `apply`, never when the file is imported.
Leaves to others: hashing, recording and naming the place (lineage.py).
"""

from __future__ import annotations

# "PREFIX:..." -> the recipe's file, whose `resolve(store, ref)` gives the recipe and its parents. Naming such
# a target is enough to have it: nothing is downloaded.
TARGETS = {"call": "call", "url": "url", "remote": "remote", "llamacpp": "engine", "vllm": "engine"}


def derivable() -> list[str]:
    """The recipes that `heredity derive` offers; none is imported."""
    from pathlib import Path

    from heredity import registry

    folder = Path(__file__).parent
    return [n for n in registry.names("recipes") if "\nDERIVES = " in (folder / f"{n}.py").read_text("utf-8")]
