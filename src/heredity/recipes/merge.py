"""Merge the weights of models of one shape.

linear: the weighted mean. slerp: of two, along the arc between them. task_arithmetic: the first parent is
the base, and what the others learned beyond it is added (Ilharco et al. 2022, 2212.04089). ties: as that,
with the largest changes only. If signs disagree, only the side with more weight counts (Yadav et al. 2023,
2306.01708). resta: of three; the first plus the difference of the second, aligned, and the third, unaligned
(Bhardwaj et al. 2024, 2402.11746).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heredity.core.errors import Damaged, HeredityError, UsageError
from heredity.core.progress import Watch
from heredity.core.records import Model
from heredity.lineage.graph import FORMS
from heredity.lineage.store import read_record
from heredity.lineage.types import Description, Grown
from heredity.recipes import DerivableRecipe, setting

_TOKENIZER = "tokenizer.json"


def refuse_other_tokens(one: Grown, other: Grown) -> None:
    """Raises UsageError if two models' tokenizers differ, and names the first differing token."""
    from tokenizers import Tokenizer

    vocabularies = []
    for grown in (one, other):
        path = grown.folder / _TOKENIZER
        if not path.is_file():
            raise Damaged(f"'{grown.record.name}' has no tokenizer.json.")
        vocabularies.append(Tokenizer.from_file(str(path)).get_vocab())
    if vocabularies[0] == vocabularies[1]:
        return
    a, b = ({ident: token for token, ident in each.items()} for each in vocabularies)
    at = min(ident for ident in {*a, *b} if a.get(ident) != b.get(ident))
    names = f"'{one.record.name}' and '{other.record.name}'"
    raise UsageError(
        f"{names} read different tokens (id {at} is {a.get(at)!r} to one and {b.get(at)!r} to the other), so "
        "that this recipe means nothing for them."
    )


def aligned(model: Grown) -> list[str]:
    """Names of the other models of its store that have exactly its tokenizer file, sorted."""
    aligned_ids = []
    for path in sorted(model.folder.parents[1].glob("*/model.json")):
        try:
            aligned_ids.append(read_record(path))
        except HeredityError:
            continue
    records = {each.id: each for each in aligned_ids}

    def source(record: Model) -> Model:
        """The model that a user would name: what a mere form is a form of."""
        is_form = record.recipe.kind in FORMS and record.parents and record.parents[0] in records
        return source(records[record.parents[0]]) if is_form else record

    wanted = _tokenizer_hash(model.record)
    same = [source(each) for each in records.values() if wanted and _tokenizer_hash(each) == wanted]
    return sorted({each.name for each in same if each.id != source(model.record).id})


def _tokenizer_hash(record: Model) -> str:
    return next((file.sha256 for file in record.files if file.path == _TOKENIZER), "")


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Merge(DerivableRecipe):
    """Parents of one shape and one tokenizer; with ties and task_arithmetic the first is the base."""

    method: Literal["linear", "slerp", "ties", "task_arithmetic", "resta"] = setting(
        "linear", "How they are merged."
    )
    weights: str = setting("", "A weight for each that is merged, as 0.7,0.3.")
    density: float = setting(0.2, "Share of each parent's changes that ties keeps.")
    name: str = field(default="", compare=False)
    watch: Watch | None = field(default=None, compare=False)

    kind = "merge"
    PARENTS = "PARENT PARENT..."
    EXAMPLE = "heredity derive merge smollm2-135m-instruct tuned-a tuned-b --method ties"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(f"density must lie in (0, 1], not {self.density:g}.")
        _numbers(self.weights)

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Write the merged weights, everything else as the first parent has it."""
        from heredity.formats.safetensors_io import read_all, rewrite

        is_over_base = self.method in ("ties", "task_arithmetic")
        exact = {"slerp": 2, "resta": 3}.get(self.method)
        if len(parents) < 2 or exact not in (None, len(parents)):
            needs = {2: "two parents", 3: "three parents"}.get(exact or 0, "two parents or more")
            raise UsageError(f"{self.method} merges {needs}, not {len(parents)}.")
        first, others = parents[0], parents[1:]
        from heredity.recipes.merge import refuse_other_tokens

        for other in others:
            one, two = (json.loads((g.folder / "config.json").read_text("utf-8")) for g in (first, other))
            differs = next((key for key in _SHAPE if one.get(key) != two.get(key)), None)
            if differs:
                raise UsageError(
                    f"'{first.record.name}' and '{other.record.name}' are not of one shape: {differs} is "
                    f"{one.get(differs)} and {two.get(differs)}. Only models of one foundation can be merged."
                )
            _refuse_other_tensors(first, other)
            refuse_other_tokens(first, other)
        n_weighed = 1 if self.method == "resta" else len(others) if is_over_base else len(parents)
        shares = self._shares(n_weighed)
        tensors = [read_all(each.folder) for each in others]

        def merged(name: str, tensor: Tensor) -> Tensor:
            rest = [each[name].float() for each in tensors]
            return self._merge(tensor.float(), rest, shares).to(tensor.dtype)

        rewrite(first.folder, out, merged, watch=self.watch)
        record = first.record
        name = self.name or f"{record.name}-merged"
        licences = " AND ".join(dict.fromkeys(each.record.licence for each in parents))
        versions = {each: version(each) for each in ("torch", "safetensors")}
        return Description(name, record.family, licences, "safetensors", versions=versions)

    def _shares(self, n: int) -> list[float]:
        given = _numbers(self.weights)
        if given and len(given) != n:
            raise UsageError(f"{len(given)} weights for {n} models that are merged.")
        if self.method in ("ties", "task_arithmetic", "resta"):
            return given or [1.0] * n
        shares = given or [1.0] * n
        if not sum(shares):
            raise UsageError(f"The weights {self.weights} sum to nothing.")
        return [each / sum(shares) for each in shares]

    def _merge(self, first: Tensor, rest: list[Tensor], shares: list[float]) -> Tensor:
        if self.method == "linear":
            return sum((w * each for w, each in zip(shares, (first, *rest), strict=True)), first * 0)
        if self.method == "slerp":
            return slerp(first, rest[0], shares[1])
        if self.method == "resta":
            return first + shares[0] * (rest[0] - rest[1])
        changes = [each - first for each in rest]
        if self.method == "task_arithmetic":
            return sum((w * each for w, each in zip(shares, changes, strict=True)), first)
        return first + ties(changes, shares, self.density)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Along the arc from a to b; where they point the same way, along the line."""
    import torch

    cosine = torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(torch.sin(angle)) < 1e-4:
        return (1 - share) * a + share * b
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def ties(changes: Sequence[Tensor], shares: Sequence[float], density: float) -> Tensor:
    """Trim, elect a sign, and take the weighted mean of those that have it (TIES, algorithm 1; as PEFT)."""
    import torch

    kept = []
    for change in changes:
        n_kept = max(1, int(density * change.numel()))
        least = change.abs().flatten().kthvalue(change.numel() - n_kept + 1).values
        kept.append(torch.where(change.abs() >= least, change, torch.zeros_like(change)))
    stack = torch.stack(kept)
    elected = torch.where(stack.sum(0) >= 0, 1, -1)
    agrees = torch.sign(stack) == elected
    weights = torch.tensor(shares, dtype=stack.dtype).view(-1, *[1] * changes[0].ndim)
    return (stack * weights * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(each) for each in text.split(",") if each.strip()]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        return numbers
    except ValueError:
        raise UsageError(f"weights are numbers, as 0.7,0.3; not {text!r}.") from None


_SHAPE = (
    *("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
)


def _refuse_other_tensors(first: Grown, other: Grown) -> None:
    """Raise UsageError if a tensor of the first is missing in the other, or has another shape there."""
    one, two = (_shapes(each.folder) for each in (first, other))
    if differs := sorted(name for name, shape in one.items() if two.get(name) != shape):
        raise UsageError(
            f"'{first.record.name}' and '{other.record.name}' are not of one shape: {differs[0]} is"
            f" {one.get(differs[0])} and {two.get(differs[0])}. Only models of one foundation can be merged."
        )


def _shapes(folder: Path) -> dict[str, list[int]]:
    from heredity.formats.safetensors_io import read_safetensors

    shards = [read_safetensors(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: each.shape for shard in shards for name, each in shard.items()}


DERIVES = Merge
