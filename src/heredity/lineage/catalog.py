"""The foundation models that are known by name: catalog.toml and families.toml, read into typed entries.

    catalog.toml    models whose files are pinned by size and SHA-256
    families.toml   the open families; what their files are is recorded when one is first pulled
    models.toml     the user's own (core/readers.py), in the form of catalog.toml

Promises: an unknown field in a file of the catalogue is an error; a name has one entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import UnsetType

from heredity.core import readers
from heredity.core.errors import BadInput
from heredity.core.records import Evidence, Model

# The marks of a format behind a name: "Llama-3.2-1B-unsloth-bnb-4bit", "SmolLM2-135M-Instruct.Q4_1.gguf".
_FORMAT = re.compile(
    r"[-_.](?:unsloth|bnb|\d+bit|gguf|gptq|awq|fp8|bf16|f16|f32|nf4|dynamic|int[48]|w[48]a\d+"
    r"|i?q\d(?:_[0-9a-z]+)*|mlx|dequantized)$"
)
_FOUR_BIT = re.compile(r"[-_.]bnb-[48]bit$")


def plain_name(name: str) -> str:
    """A name for comparing: the last part in lower case, without the marks of a format."""
    last_part = re.split(r"[/\\]", name.partition("@")[0].strip().rstrip("/\\"))[-1].lower()
    while (shorter := _FORMAT.sub("", last_part)) != last_part:
        last_part = shorter
    return re.sub(r"[\s_.]+", "-", last_part)


def is_quantized_name(name: str) -> bool:
    """Whether a name is that of a base in 4 or 8 bits, over which QLoRA trains."""
    return _FOUR_BIT.search(name.strip().lower()) is not None


def names_of(models: Iterable[Model]) -> frozenset[str]:
    """The plain names of models: their own, and those of their sources."""
    names: set[str] = set()
    for model in models:
        named = [model.recipe.settings.get(key) for key in ("repo", "file", "folder", "name")]
        names |= {model.name, *(each for each in named if isinstance(each, str) and each)}
        entry = _entry(model)
        if entry is not None:
            names |= {entry.hub.repo, *entry.aliases}
    return frozenset(plain_name(name) for name in names)


def is_from_hub(models: Iterable[Model]) -> bool:
    """Whether one of these models came from a hub, so that it has the name that others use."""
    return any("repo" in m.recipe.settings or _entry(m) is not None for m in models)


def _entry(model: Model) -> Entry | None:
    """The entry of the catalogue from which a model was pulled."""
    name = model.recipe.settings.get("name")
    return find(name) if model.recipe.kind == "pull" and isinstance(name, str) else None


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
        if each.is_abliterated:
            how_many = f"{each.n_lost} of {each.n_written} output matrices lost a direction"
            yield (
                "abliterated",
                f"{how_many} in which the parent wrote, as the removal of refusals leaves them",
            )


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


_PINNED = Path(__file__).with_name("catalog.toml")
_FAMILIES = Path(__file__).with_name("families.toml")
# Bytes of a weight. MXFP4 has 4 bits and a scale of 8 bits for each 32 weights.
BYTES_PER_WEIGHT: Mapping[str, float] = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1, "mxfp4": 0.53
}  # fmt: skip


Dtype = Literal["float32", "float16", "bfloat16", "float8", "int8", "mxfp4"]
# No place outside of the model's folder: parts begin with a letter or a digit.
_FilePath = Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]
Count = Annotated[float, msgspec.Meta(ge=0, lt=1e15)]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a model: its path here, what it must be, and its name in the hub's repository."""

    path: _FilePath
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    hub: str = ""


class Hub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A repository of the model hub. `gated`: it asks for consent to its licence before it gives a file."""

    repo: Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*/\w[\w.-]*$")]
    revision: str = ""
    gated: bool = False


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A foundation model. `about` is shown with it.

    files         pinned files; () if they are recorded at the first pull
    architecture  the `model_type` of its config.json
    parameters    all of them, rounded; 0 if not known
    dtype         of the files; download: their bytes, if parameters and dtype do not give them
    context       the longest text in tokens; 0 if not known
    chat          has a chat template
    own_code      the repository brings code, which is left out
    """

    family: str
    licence: str
    format: Literal["safetensors", "gguf"]
    hub: Hub
    files: tuple[File, ...] = ()
    modality: str = "text"
    aliases: tuple[str, ...] = ()
    about: str = ""
    architecture: str = ""
    parameters: Count = 0
    dtype: Dtype = "bfloat16"
    download: Count = 0
    context: int = 0
    chat: bool = True
    own_code: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all files together. Exact only if the files are pinned."""
        if self.files:
            return sum(file.bytes for file in self.files)
        return round(self.download or self.parameters * BYTES_PER_WEIGHT[self.dtype])

    @property
    def is_pinned(self) -> bool:
        """Whether the catalogue itself holds the size and hash of every file."""
        return bool(self.files)

    def memory(self) -> dict[str, int]:
        """Bytes that the weights take, by the dtype they are computed in; {} if the size is not known."""
        kinds = ("float32", "bfloat16", "int8") if self.parameters else ()
        return {kind: round(self.parameters * BYTES_PER_WEIGHT[kind]) for kind in kinds}


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model of a family; None: the family's value."""

    name: str
    repo: str
    parameters: float
    licence: str | None = None
    architecture: str | None = None
    dtype: Dtype | None = None
    download: float = 0
    context: int | None = None
    chat: bool | None = None
    gated: bool | None = None
    own_code: bool = False


class _Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    licence: str
    architecture: str
    models: tuple[_Model, ...]
    modality: str = "text"
    dtype: Dtype = "bfloat16"
    context: int = 0
    chat: bool = True
    gated: bool = False

    def entry(self, model: _Model) -> Entry:
        def of(own: str | None, shared: str) -> str:
            return shared if own is None else own

        gated = self.gated if model.gated is None else model.gated
        return Entry(
            self.name,
            of(model.licence, self.licence),
            "safetensors",
            Hub(model.repo, gated=gated),
            modality=self.modality,
            architecture=of(model.architecture, self.architecture),
            parameters=model.parameters,
            dtype=model.dtype or self.dtype,
            download=model.download,
            context=self.context if model.context is None else model.context,
            chat=self.chat if model.chat is None else model.chat,
            own_code=model.own_code,
        )


class _Families(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    family: tuple[_Family, ...]


@cache
def catalogue() -> dict[str, Entry]:
    """Name -> entry: the pinned models, the families, then the user's own, each in its file's order."""
    try:
        pinned = msgspec.toml.decode(_PINNED.read_bytes(), type=dict[str, Entry])
        families = msgspec.toml.decode(_FAMILIES.read_bytes(), type=_Families).family
    except msgspec.DecodeError as error:
        raise BadInput(_PINNED.parent.name, str(error)) from error
    known = pinned | {model.name: family.entry(model) for family in families for model in family.models}
    taken = {*known, *(alias for entry in known.values() for alias in entry.aliases)}
    return known | dict(readers.user_entries(Entry, is_remote=False, taken=taken))


@cache
def aliases() -> dict[str, str]:
    """Short name -> name."""
    return {alias: name for name, entry in catalogue().items() for alias in entry.aliases}


def canonical(name: str) -> str:
    """The name that a short name stands for; any other name as it is."""
    return aliases().get(name, name)


def find(ref: str) -> Entry | None:
    """The entry of "NAME" or "NAME@REVISION"; None for any other reference."""
    return catalogue().get(canonical(ref.partition("@")[0]))


def names() -> list[str]:
    """Every name that `pull` knows, short ones last."""
    return [*catalogue(), *aliases()]
