"""The evidence of a descent in words, and the names under which a parent may be claimed.

Promises: only records are read. A name is compared without its owner and without marks of a format.
Leaves to others: finding the evidence (evidence.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import UnsetType

from heredity.core.records import Evidence, Model
from heredity.lineage import catalog

# The marks of a format behind a name: "Llama-3.2-1B-unsloth-bnb-4bit", "SmolLM2-135M-Instruct.Q4_1.gguf".
_FORMAT = re.compile(
    r"[-_.](?:unsloth|bnb|\d+bit|gguf|gptq|awq|fp8|bf16|f16|f32|nf4|dynamic|int[48]|w[48]a\d+"
    r"|i?q\d(?:_[0-9a-z]+)*|mlx|dequantized)$"
)
_FOUR_BIT = re.compile(r"[-_.]bnb-[48]bit$")


def plain_name(name: str) -> str:
    """A name for comparing: the last part in lower case, without the marks of a format."""
    found = re.split(r"[/\\]", name.partition("@")[0].strip().rstrip("/\\"))[-1].lower()
    while (shorter := _FORMAT.sub("", found)) != found:
        found = shorter
    return re.sub(r"[\s_.]+", "-", found)


def is_quantized_name(name: str) -> bool:
    """Whether a name is that of a base in 4 or 8 bits, over which QLoRA trains."""
    return _FOUR_BIT.search(name.strip().lower()) is not None


def names_of(models: Iterable[Model]) -> frozenset[str]:
    """The plain names of models: their own, and those of their sources."""
    found: set[str] = set()
    for model in models:
        named = [model.recipe.settings.get(key) for key in ("repo", "file", "folder", "name")]
        found |= {model.name, *(each for each in named if isinstance(each, str) and each)}
        entry = _entry(model)
        if entry is not None:
            found |= {entry.hub.repo, *entry.aliases}
    return frozenset(plain_name(name) for name in found)


def is_from_hub(models: Iterable[Model]) -> bool:
    """Whether one of these models came from a hub, so that it has the name that others use."""
    return any("repo" in m.recipe.settings or _entry(m) is not None for m in models)


def _entry(model: Model) -> catalog.Entry | None:
    """The entry of the catalogue from which a model was pulled."""
    name = model.recipe.settings.get("name")
    return catalog.find(name) if model.recipe.kind == "pull" and isinstance(name, str) else None


def how(model: Model) -> str:
    """How a model was made, in the words of a tree: "lora", "adopt lora (shown)"."""
    return f"{model.recipe.kind} {evidence_words(model)}".rstrip()


def evidence_words(model: Model) -> str:
    """How another tool made an adopted model, and the level of the evidence: "lora (shown)"; else ""."""
    return "" if isinstance(model.descent, UnsetType) else f"{model.descent.made} ({model.descent.level})"


def facts(model: Model) -> Iterator[tuple[str, str]]:
    """The evidence of an adopted model: a label and a sentence for each parent."""
    if isinstance(model.descent, UnsetType):
        return
    for number, each in enumerate(model.descent.evidence, 1):
        label = "descent" if len(model.descent.evidence) == 1 else f"descent from parent {number}"
        yield label, f"{each.level}: {'; '.join(_parts(each))}"


def _parts(evidence: Evidence) -> Iterator[str]:
    claims = ", ".join(f"{place} names {name}" for place, name in evidence.claims.items())
    no_match = ", not a name of the parent" if "name" in evidence.differs else ""
    yield f"{claims}{no_match}" if claims else "its files name no parent"
    if evidence.agrees:
        yield f"same {', '.join(evidence.agrees)}"
    if others := [each for each in evidence.differs if each != "name"]:
        yield f"other {', '.join(others)}"
    if evidence.n_tensors:
        yield f"{evidence.n_equal} of {evidence.n_tensors} compared tensors are equal"
    if evidence.cosine is not None and evidence.distance is not None:
        yield f"cosine {evidence.cosine:.3f} and distance {evidence.distance:.3g} of its matrices"
    if evidence.ranks:
        pairs = zip(evidence.ranks, evidence.sizes, strict=True)
        shown = ", ".join(f"{rank} of {size}" for rank, size in pairs)
        yield f"99 % of the change lies in {shown} singular values of sampled matrices"
    if evidence.worst_step is not None and evidence.within_step is not None:
        share = f"{100 * evidence.within_step:.2f} % of the weights within one step"
        yield f"{share} of its grid, the worst {evidence.worst_step:.2f} steps away"
