"""Record a model that another tool made as the child of models of the store.

Promises: a descent that the files contradict is not recorded; the record holds the evidence.
Leaves to others: the files and the evidence (recipes/adopt.py), its words (catalog.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heredity.core import registry
from heredity.core.errors import Unavailable, UsageError
from heredity.core.progress import Watch, phase
from heredity.core.records import Relation
from heredity.lineage import graph
from heredity.lineage.catalog import is_from_hub, names_of
from heredity.lineage.references import HUB
from heredity.lineage.store import Store
from heredity.lineage.types import Adopter, Adoption, Grown, KnownParent


def adopt(
    ref: str,
    parents: Grown | Sequence[Grown],
    store: Store | None = None,
    made: Relation | None = None,
    name: str = "",
    is_declared: bool = False,
    progress: Watch | None = None,
) -> Grown:
    """Record a model that another tool made as a child of its parents, with the evidence of its descent.

        base = store.pull("hf:org/base")
        child = h.adopt("out/my-adapter", base, store)

    ref: a folder with a PEFT adapter or with whole weights, a .gguf file, "hf:ORG/REPO", or a model of the
    store. Training leftovers, such as optimizer.pt and checkpoints, are left out by name and never opened.
    parents: one; of a merge several, and of a distilled student its start and its teacher.
    made: "lora", "alora", "finetune", "quantize", "merge" or "distill"; None lets the files decide.
    is_declared: record the descent although the model's own files name another parent.

    Raises Refused, with the contradictions, for other shapes or tokens, for values that are unrelated to the
    parent's, and for files that name another parent. Raises UsageError for a path that does not exist.
    """
    given = [parents] if isinstance(parents, Grown) else list(parents)
    if not given or (len(given) > 1 and made not in ("merge", "distill")):
        raise UsageError(f"A child has one parent, of a merge or a distillation several, not {len(given)}.")
    store = store or Store(given[0].folder.parents[2])
    for parent in given:
        if why := graph.why_childless(parent.record, needs_text=False):
            raise Unavailable(f"Nothing is adopted as a child of '{parent.record.name}': {why}.")
    whole = [store.whole(parent) for parent in given]
    kin = [[parent.record, *store.ancestors(parent.record)] for parent in whole]
    known = tuple(KnownParent(names_of(models), is_from_hub(models)) for models in kin)
    adoption = Adoption(made, known, name, is_declared, _others(store, whole))
    adopter = registry.load_as(Adopter, "recipes", "adopt")
    if not (ref.startswith(HUB) or "/" in ref or "\\" in ref or Path(ref).exists()):
        with phase(progress, "comparing with the parent", ref):
            return _stored(store, ref, whole, adopter, adoption)
    return store.grow(adopter.resolve_files(ref, adoption, store.downloads, progress), whole)


def _others(store: Store, parents: Sequence[Grown]) -> frozenset[str]:
    """The plain names of models that are unrelated to these parents."""
    related = {
        each.id
        for parent in parents
        for each in (parent.record, *store.ancestors(parent.record), *store.descendants(parent.record))
    }
    return names_of(model for model in store.models() if model.id not in related and not model.parents)


def _stored(store: Store, ref: str, whole: Sequence[Grown], adopter: Adopter, adoption: Adoption) -> Grown:
    """A stored model as a child; itself if its record has that ancestor already."""
    made = store.get(ref)
    if made.record.id in {parent.record.id for parent in whole}:
        raise UsageError(f"'{made.record.name}' cannot be its own child.")
    if len(whole) > 1:
        raise UsageError("Give the files of a merge by their path; a stored model gets one parent.")
    ancestors = {each.id for each in store.ancestors(made.record)}
    if {parent.record.id for parent in whole} <= ancestors:
        return made
    return store.grow(adopter.of_stored(adoption), [*whole, made])
