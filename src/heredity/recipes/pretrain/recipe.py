"""Pre-train a base from random weights on a corpus: a root of the lineage that is nobody else's.

Promises: what it came from is recorded: the corpus by its fingerprint, and every figure that the size set;
killed, it goes on to the same bits; a run that cannot fit is refused before its first step.
Leaves to others: what each kind of model is made of (_newborn.py causal, _encoder.py masked, _dual.py
contrastive), the corpus (train/corpus/, train/pictures/), sizes (train/sizes.py), the loop (train/loop.py).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from heredity.core import registry
from heredity.core.errors import BadInput, UsageError, code_of, did_you_mean
from heredity.core.files import explain_full_disk
from heredity.core.progress import Watch
from heredity.core.readers import naming, toml_line, toml_of
from heredity.core.records import digest
from heredity.lineage.types import Description, Grown
from heredity.recipes._training_run import setting
from heredity.recipes.pretrain import budget

if TYPE_CHECKING:
    from heredity.corpus import Corpus
    from heredity.corpus.images import Pictures
    from heredity.train.models.shapes import SizePreset, TransformerShape

_UNSET = ("file", "watch", "folder", "together")  # fields that no file sets
_SHAPE = ("layers", "width", "heads", "kv_heads", "head", "wide")
_TEXT = ("causal", "masked")
_USUAL = {
    "causal": "qwen3",
    "masked": "modernbert",
    "contrastive": "clip",
}  # an objective's architecture where none is given
_LONG = 3e13  # FLOPs of a run from which on compiling, which takes half a minute, is worth it
_ONLY = {  # the objectives that a setting is of, where not of all
    **dict.fromkeys(("context", "tokens", "z_loss", "held_out"), _TEXT),
    "reduce": _TEXT,
    **dict.fromkeys(("pairs", "caption", "patch", "shift"), ("contrastive",)),
    "kv_heads": ("causal",),
    "head": ("causal",),
    "hidden": ("masked",),
    "noise": ("masked",),
    "fuse": ("causal",),
}


def read(
    path: Path, given: Mapping[str, Any] | None = None, watch: Watch | None = None, needs_corpus: bool = True
) -> Pretrain:
    """The recipe in a TOML file, what is `given` in place of what it says; a corpus lies beside the file.

    needs_corpus: False where the recipe is only planned, and may name none. Raises BadInput with the nearest
    name for a key that is none, UsageError for what cannot be.
    """
    said = toml_of(path)
    hints = {each.name: hint for each, hint in _settable()}
    for key, value in said.items():
        if key not in hints:
            hint = did_you_mean(key, hints)
            raise BadInput(
                path, f"no setting is called '{key}'.{hint}", toml_line(path, key), code="unknown-key"
            )
        try:
            said[key] = msgspec.convert(value, str if hints[key] is Path else hints[key])
        except msgspec.ValidationError as error:
            raise BadInput(
                path, f"{key}: {error}", toml_line(path, key), code=code_of(error, "bad-setting")
            ) from None
    if "corpus" in said:
        said["corpus"] = path.parent / said["corpus"]
    said |= given or {}
    if name := next((key for key in said if not _is_of(key, said.get("objective", "causal"))), None):
        raise BadInput(
            path,
            _not_of(name, said.get("objective", "causal")),
            toml_line(path, name),
            code="key-of-another-objective",
        )
    if not needs_corpus:
        said.setdefault("corpus", path.parent / "corpus")
    if "corpus" not in said:
        raise BadInput(
            path,
            'names no corpus. Add: corpus = "FOLDER", which `heredity corpus build` wrote',
            code="corpus-missing",
        )
    with naming(path):
        return Pretrain(**said, file=path, watch=watch)


def _settable() -> list[tuple[dataclasses.Field[Any], Any]]:
    """What a file may set, with its type."""
    hints = typing.get_type_hints(Pretrain)
    fields = [each for each in dataclasses.fields(Pretrain) if each.name not in _UNSET]
    return [(each, hints[each.name]) for each in fields]


def _is_of(name: str, objective: str) -> bool:
    """Whether an objective has this setting."""
    return objective in _ONLY.get(name, (objective,))


def _not_of(name: str, objective: str) -> str:
    of = " or ".join(f'"{each}"' for each in _ONLY[name])
    return f'{name} is a setting of objective = {of}, and this is "{objective}". Leave it out.'


@dataclass(frozen=True)
class Pretrain:
    """A new model of `size`, from the corpus in a folder. 0: what the size sets."""

    corpus: Path = field(metadata={"help": "The folder that `heredity corpus build` wrote."})
    objective: Literal["causal", "masked", "contrastive"] = setting(
        "causal", "What is learned: the next token, what gaps hide, or which caption is of which picture."
    )
    size: str = setting("10M", "Parameters, about: 10M, 135M, 1.5B.")
    architecture: str = setting(
        "",
        "What it is built like: qwen3 (the usual), llama; masked: modernbert (the usual), bert;"
        " contrastive: clip (the usual), siglip.",
    )
    context: int = setting(1024, "Tokens that it sees at once; not contrastive.")
    tokens: int = setting(0, "Tokens to read; 0: 20 a parameter; not contrastive.")
    pairs: int = setting(0, "Pairs to read; 0: each 30 times; contrastive alone.")
    caption: int = setting(32, "Tokens of a caption, where a longer one is cut; contrastive alone.")
    patch: int = setting(8, "Points of a picture, each way, that are one token; contrastive alone.")
    shift: bool = setting(True, "Whether pictures are moved a little each time; contrastive alone.")
    batch: int = setting(0, "Tokens a step; contrastive: pairs.")
    rate: float = setting(0.0, "The highest learning rate.")
    layers: int = setting(0, "Layers.")
    width: int = setting(0, "Columns.")
    heads: int = setting(0, "Heads of attention.")
    kv_heads: int = setting(0, "Heads of keys and values; causal alone.")
    head: int = setting(0, "Columns of a head; causal alone.")
    wide: int = setting(0, "Columns of the feed-forward part.")
    optimizer: Literal["muon", "adamw"] = setting(
        "muon", "What steps; muon: hidden matrices, the rest AdamW."
    )
    schedule: Literal["wsd", "cosine", "constant"] = setting("wsd", "How the rate falls.")
    warmup: float = setting(0.02, "Share of the steps in which the rate rises.")
    decay: float = setting(0.1, "Weight decay, on matrices that are no embeddings.")
    clip: float = setting(1.0, "The longest gradient; 0: as long as it is.")
    z_loss: float = setting(1e-4, "Weight of the square of log Z; not contrastive.")
    hidden: float = setting(0.3, "Share of the tokens that are hidden; masked alone.")
    noise: Literal["mask", "80-10-10"] = setting(
        "mask", "What stands in a gap: the mask, or in every fifth another token or the same; masked alone."
    )
    checks: int = setting(20, "How often held-out text is told on the way.")
    held_out: int = setting(100_000, "Tokens of held-out text that are told each time; not contrastive.")
    keep_every: int = setting(100, "Steps between checkpoints.")
    spike: float = setting(2.0, "Nats above the median that a loss may leap before the guard goes back.")
    seed: int = setting(0, "What everything random is drawn from.")
    dtype: Literal["auto", "bfloat16", "float32"] = setting("auto", "What is multiplied in.")
    replicas: int = setting(
        1,
        "Groups of processes that hold all weights each; 1: each another piece.",
        is_recorded=False,
    )
    reduce: Literal["once", "each"] = setting(
        "once",
        "Sum gradients over processes once a step, or after each batch, in less memory.",
        is_recorded=False,
    )
    recompute: bool = setting(
        False, "Make a layer's activations again on the way back, in less memory.", is_recorded=False
    )
    fuse: Literal["auto", "yes", "no"] = setting(
        "auto",
        "Compile chains of small steps on a CPU; auto: where a run is long and that works; causal alone.",
        is_recorded=False,
    )
    memory: float = setting(0.0, "GiB that may be used; 0: what is free.", is_recorded=False)
    licence: str = setting("unknown", "Licence of what comes of it: that of the corpus, if it has one.")
    name: str = field(default="", compare=False)
    file: Path | None = field(default=None, compare=False)  # where it stands
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)
    together: Any = field(default=None, compare=False)  # train.processes.Processes; None: alone

    kind = "pretrain"

    @classmethod
    def read(cls, path: Path, given: Mapping[str, Any] | None = None, watch: Watch | None = None) -> Pretrain:
        """The recipe in a TOML file: see `read` of this module."""
        return read(path, given, watch)

    def __post_init__(self) -> None:
        self._fit()
        for name in ("context", "held_out", "keep_every", "checks", "patch", "replicas"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} must be at least 1, not {getattr(self, name)}.", code="bad-setting", key=name
                )
        for name in (
            "tokens",
            "pairs",
            "batch",
            "rate",
            "decay",
            "clip",
            "z_loss",
            "seed",
            "memory",
            *_SHAPE,
        ):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"{name} must not be negative, and is {getattr(self, name)}.",
                    code="bad-setting",
                    key=name,
                )
        for each in dataclasses.fields(self):
            if isinstance(value := getattr(self, each.name), float) and not math.isfinite(value):
                raise UsageError(
                    f"{each.name} must be a number, and is {value}.", code="bad-setting", key=each.name
                )
        if self.seed >= 1 << 63:
            raise UsageError(f"seed must be below 2^63, and is {self.seed}.", code="bad-setting", key="seed")
        if self.warmup >= 1 or self.spike <= 0:
            raise UsageError(
                f"warmup must be below 1 ({self.warmup:g}) and spike above 0 ({self.spike:g}).",
                code="bad-setting",
                key="warmup" if self.warmup >= 1 else "spike",
            )

    def _fit(self) -> None:
        """The usual architecture where none is given. Raises UsageError for what is of another objective."""
        if not self.architecture:
            object.__setattr__(self, "architecture", _USUAL[self.objective])
        if self.architecture not in (known := registry.names("train.models.architectures")):
            near = did_you_mean(self.architecture, known) or f" Known: {', '.join(known)}."
            raise UsageError(
                f"architecture: there is none named '{self.architecture}'.{near}",
                code="unknown-architecture",
                key="architecture",
            )
        of: str = registry.load("train.models.architectures", self.architecture).OBJECTIVE
        if of != self.objective:
            raise UsageError(
                f"'{self.architecture}' is an architecture of objective = \"{of}\", and this is"
                f' "{self.objective}", as of {_USUAL[self.objective]}.',
                code="setting-of-another-objective",
                key="architecture",
            )
        for each in dataclasses.fields(self):
            is_given = getattr(self, each.name) != each.default
            if is_given and not _is_of(each.name, self.objective):
                raise UsageError(
                    _not_of(each.name, self.objective), code="setting-of-another-objective", key=each.name
                )
        if self.caption < 2 or (self.objective == "masked" and self.context < 3):
            raise UsageError(
                "A piece with a gap needs a context of 3 tokens, and a caption 2.", code="bad-setting"
            )
        if not 0 < self.hidden < 1:
            raise UsageError(
                f"hidden is a share between 0 and 1, and is {self.hidden:g}.",
                code="bad-setting",
                key="hidden",
            )

    @cached_property
    def text(self) -> Corpus:
        """The corpus, opened. Raises BadInput or Damaged."""
        from heredity.corpus import Corpus

        return Corpus.open(self.corpus)

    @cached_property
    def pictures(self) -> Pictures:
        """The corpus of pictures, opened. Raises BadInput or Damaged."""
        from heredity.corpus.images import Pictures

        found = Pictures.open(self.corpus)
        if not len(found.split("validation")):
            raise UsageError(f"{self.corpus} holds out no pair to look at. Build it with a validation share.")
        return found

    @cached_property
    def dial(self) -> SizePreset:
        """Shape, tokens (or pairs), batch and rate. Raises UsageError."""
        from heredity.train.models import shapes
        from heredity.train.models import shapes as towers

        given = {name: getattr(self, name) for name in ("tokens", "pairs", "batch", "rate", *_SHAPE)}
        with naming(self.file):
            if self.objective == "contrastive":
                read, picture = self.pictures, (self.pictures.card.side, self.patch)
                n_pairs = len(read.split("train"))
                return towers.dual_size_preset(
                    self.size, read.n_vocabulary, self.caption, picture, n_pairs, given
                )
            return shapes.size_preset(self.size, self.text.n_vocabulary, self.context, given, self.made_of)

    @property
    def made_of(self) -> type[TransformerShape]:
        """What a model of text is made of."""
        built = registry.load("train.models.architectures", self.architecture)
        found: type[TransformerShape] = built.SHAPE
        return found

    @cached_property
    def is_fused(self) -> bool:
        """Whether chains of small steps are compiled: one process, on a CPU, where that is worth its time.

        Raises UsageError where it was asked for and cannot be.
        """
        from heredity.train.kernels import compile as fused
        from heredity.train.models import shapes

        if self.fuse == "no" or self.objective != "causal":
            return False
        is_alone = self.together is None or (self.together.is_alone and self.together.device.type == "cpu")
        is_long = 6.0 * shapes.n_parameters(self.dial.shape) * self.dial.tokens > _LONG
        if self.fuse == "auto":
            return is_alone and is_long and not fused.why_unavailable()
        if why := fused.why_unavailable() if is_alone else "one process on a CPU compiles, and no other":
            raise UsageError(
                f'Nothing can be compiled here ({why}). Set fuse = "no".', code="nothing-compiles"
            )
        return True

    @property
    def n_steps(self) -> int:
        """Steps until all tokens, or pairs, are read."""
        return max(1, math.ceil(self.dial.tokens / self.dial.batch))

    @property
    def every(self) -> int:
        """Steps between two looks at what is held out; there is one after the last, too."""
        return budget.every(self.n_steps, self.checks)

    def settings(self) -> dict[str, Any]:
        """Every setting, what the size set among them, and the corpus by its fingerprint."""
        own = [each for each in dataclasses.fields(self) if each.compare]
        own = [each for each in own if each.metadata.get("is_recorded", True)]
        found = {each.name: getattr(self, each.name) for each in own if _is_of(each.name, self.objective)}
        dial, is_text = self.dial, self.objective in _TEXT
        shape = {k: v for k, v in msgspec.to_builtins(dial.shape).items() if is_text or k != "context"}
        found |= shape | {
            "tokens" if is_text else "pairs": dial.tokens,
            "batch": dial.batch,
            "rate": dial.rate,
        }
        return found | {"corpus": (self.text if is_text else self.pictures).fingerprint}

    def at(self, folder: Path) -> Pretrain:
        """This recipe, its checkpoints in a folder."""
        made = dataclasses.replace(self, folder=folder)
        # What was opened is not hashed again: a corpus may be large.
        vars(made).update(
            {name: vars(self)[name] for name in ("text", "pictures", "is_fused") if name in vars(self)}
        )
        return made

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Train, and write weights, tokenizer, curve and samples into `out`. There are no parents."""
        assert not parents
        making = self._making()
        folder = self.folder or out.parent / "training"
        with naming(self.file), explain_full_disk(folder, 0):
            notes = making.write(self, making.train(self, folder), out)
        kind = "base" if self.objective == "causal" else self.architecture
        name = self.name or f"{kind}-{self.size.lower()}"
        return Description(
            name=name,
            family=name,
            licence=self.licence,
            format="safetensors",
            modality="text" if self.objective in _TEXT else "image-text",
            notes=notes,
            versions={name: version(name) for name in ("torch", "transformers", "safetensors", "tokenizers")},
        )

    def join(self, folder: Path) -> None:
        """What a process does that is not the first: its share of every step."""
        with naming(self.file):
            self._making().train(self, folder)

    def _making(self) -> Any:
        return importlib.import_module(f"heredity.recipes.pretrain.{self.objective}")

    @property
    def training(self) -> str:
        """The digest that its checkpoints bear."""
        return digest([self.kind, self.settings()])
