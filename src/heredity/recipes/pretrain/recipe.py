"""Pre-train a new model from random weights on a corpus, a root of the lineage, or continue from a base.

Promises: the record holds the corpus's fingerprint and every figure that the size set. A killed run resumes
to the same bits. A run that does not fit is refused before its first step. Only growing loads torch.
Leaves to others: the objectives (objectives/), the run (training.py), the corpus (corpus/),
sizes (train/models/shapes.py), and the loop (train/loop.py).
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from heredity.core import registry
from heredity.core.errors import BadInput, UsageError, code_of, did_you_mean
from heredity.core.files import explain_full_disk
from heredity.core.progress import Watch, phase
from heredity.core.readers import naming, toml_line, toml_of
from heredity.core.records import digest
from heredity.lineage.types import Description, Grown
from heredity.recipes import choice, setting, to_hashed

if TYPE_CHECKING:
    from heredity.core.host import Device
    from heredity.corpus import Corpus, ImageCorpus
    from heredity.lineage.store import Store
    from heredity.train.forecast import Workload
    from heredity.train.models.shapes import SizePreset, TransformerShape

_LR_SHARE = 0.1  # of the peak of a new model of this shape
_SHAPE = {  # the name of a setting, and its field of TransformerShape
    "layers": "layers", "hidden_size": "width", "heads": "heads", "kv_heads": "kv_heads", "head_dim": "head",
    "ffn_size": "wide",
}  # fmt: skip


def shape_of(base: Grown, context: int) -> TransformerShape:
    """The shape of a base, for chunks of `context` tokens. Raises UsageError if they are too long for it."""
    from heredity.formats.weights import read_config, setting
    from heredity.train.models.shapes import TransformerShape

    config = read_config(base.folder)
    if context > (longest := int(config.max_position_embeddings)):
        raise UsageError(
            f"context ({context:,}) must be at most the {longest:,} tokens of '{base.record.name}'.",
            code="bad-setting",
            key="context",
        )
    return TransformerShape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=setting(config, "num_key_value_heads", config.num_attention_heads),
        head=setting(config, "head_dim", config.hidden_size // config.num_attention_heads),
        wide=config.intermediate_size,
        context=context,
        vocabulary=config.vocab_size,
        is_tied=bool(config.tie_word_embeddings),
    )


def _continued_preset(recipe: Pretrain, base: Grown) -> SizePreset:
    """The base's shape; one pass over the corpus, unless tokens are given. Raises UsageError."""
    from heredity.train.models import shapes

    shape = shape_of(base, recipe.context)
    for name, known in ((name, getattr(shape, field_)) for name, field_ in _SHAPE.items()):
        if (given := getattr(recipe, name)) and given != known:
            raise UsageError(
                f"{name} is {known} in '{base.record.name}', not {given}. Leave it out.", key=name
            )
    figures = {"tokens": recipe.tokens or recipe.text.n_tokens("train")}
    if recipe.batch_size:
        figures["batch"] = recipe.batch_size
    preset = shapes.preset_of(shape, figures)
    return msgspec.structs.replace(preset, rate=recipe.lr or preset.rate * _LR_SHARE)


def refuse_other_tokens(corpus: Path, base: Grown) -> None:
    """Raise UsageError if the corpus was built with another tokenizer than the base's."""
    from tokenizers import Tokenizer

    mine, theirs = (
        Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (corpus, base.folder)
    )
    if mine != theirs:
        raise UsageError(
            f"{corpus} has other tokens than '{base.record.name}'. Build it with the base's tokenizer: "
            f'folder = "{base.folder}" under [tokenizer].',
            key="corpus",
        )


Writer = Callable[[Path], dict[str, str]]  # writes the child's files; returns the notes of its record


@runtime_checkable
class PretrainObjective(Protocol):
    """A file of this folder."""

    ARCHITECTURE: str  # the default one
    SETTINGS: frozenset[str]  # settings that not every objective has
    UNIT: Literal["tokens", "pairs"]  # what is counted
    MODALITY: str  # of the child

    def check(self, recipe: Pretrain) -> None:
        """Raise UsageError for impossible values of this objective's settings."""

    def child_name(self, recipe: Pretrain) -> str:
        """The child's name before its size, if the recipe gives no name."""

    def fingerprint(self, recipe: Pretrain) -> str:
        """The digest of the corpus."""

    def preset(self, recipe: Pretrain) -> SizePreset:
        """The shape and settings that follow from the size, for this corpus. Raises UsageError."""

    def workload(self, recipe: Pretrain, vocabulary: int, side: int) -> Workload:
        """The workload, for a plan. vocabulary, side of an image in pixels; 0: the corpus's."""

    def lower_instead(self, recipe: Pretrain) -> str:
        """The setting, other than size, that lowers the memory of a run."""

    def head_share(self, recipe: Pretrain) -> float:
        """Share of the tokens for which logits are computed."""

    def flops_per_token(self, recipe: Pretrain) -> float:
        """Forward and backward FLOPs of a token; 0: unknown, so that no time is predicted."""

    def train(self, recipe: Pretrain, folder: Path) -> Writer:
        """Draw weights from the seed and run every step. Raises OutOfMemory before the first."""


_UNSET = ("base", "file", "watch", "folder", "dist")  # fields that no file sets
_SET_BY_BASE = ("size", "architecture", *_SHAPE)
_POSITIVE = (
    "context", "validation_tokens", "checkpoint_every", "evaluations", "patch_size", "replicas",
    "recompute_every",
)  # fmt: skip
_NOT_NEGATIVE = (
    "tokens", "pairs", "batch_size", "lr", "weight_decay", "grad_clip", "z_loss", "seed", "memory", *_SHAPE,
)  # fmt: skip
_LONG = 3e13  # FLOPs above which compiling, which takes half a minute, saves time
_OBJECTIVES = "recipes.pretrain.objectives"


def load_objective(name: str) -> PretrainObjective:
    """An objective by its name. Raises UsageError."""
    if name not in (known := registry.names(_OBJECTIVES)):
        near = did_you_mean(name, known) or f" Known: {', '.join(known)}."
        raise UsageError(f"No objective named '{name}'.{near}", code="unknown-name", key="objective")
    return registry.load_as(PretrainObjective, _OBJECTIVES, name)


def read(
    path: Path, given: Mapping[str, Any] | None = None, watch: Watch | None = None, needs_corpus: bool = True
) -> Pretrain:
    """The recipe in a TOML file. `given` replaces what the file says; the corpus is relative to the file.

    needs_corpus: False for a recipe that is only planned, and may name none. Raises UsageError, and BadInput
    with the nearest name for an unknown key.
    """
    settings = _settings_of(path) | dict(given or {})
    with _naming(path):
        objective = settings.get("objective", "causal")
        load_objective(objective)
    if name := next((key for key in settings if not _is_of(key, objective)), None):
        raise BadInput(path, _not_of(name, objective), toml_line(path, name), code="unknown-key")
    if not needs_corpus:
        settings.setdefault("corpus", path.parent / "corpus")
    if "corpus" not in settings:
        raise BadInput(
            path,
            'names no corpus. Add: corpus = "FOLDER", which `heredity corpus build` wrote',
            code="missing-key",
        )
    with _naming(path, settings):
        return Pretrain(**settings, file=path, watch=watch)


def _settings_of(path: Path) -> dict[str, Any]:
    """The settings in a TOML file. Raises BadInput."""
    hints, settings = {each.name: hint for each, hint in _settable()}, dict(toml_of(path))
    for key, value in settings.items():
        line = toml_line(path, key)
        if key not in hints:
            raise BadInput(
                path, f"no setting is called '{key}'.{did_you_mean(key, hints)}", line, code="unknown-key"
            )
        try:
            settings[key] = msgspec.convert(value, str if hints[key] is Path else hints[key])
        except msgspec.ValidationError as error:
            raise BadInput(path, f"{key}: {error}", line, code=code_of(error)) from None
    if "corpus" in settings:
        settings["corpus"] = path.parent / settings["corpus"]
    return settings


@contextmanager
def _naming(path: Path | None, given: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Add the file, and the line of the setting, to a UsageError raised inside.

    given: the values of settings. If a flag replaced the value in the file, no line is added.
    """
    with naming(path):
        try:
            yield
        except UsageError as error:
            if path is not None and error.key:
                name = error.key
                if given and name in given and given[name] != toml_of(path).get(name):
                    error.key = ""
            raise


def _every(n_steps: int, evaluations: int) -> int:
    """Steps between two evaluations; one more follows the last step."""
    return max(1, n_steps // evaluations)


def _settable() -> list[tuple[dataclasses.Field[Any], Any]]:
    """The fields that a file may set, each with its type."""
    hints = typing.get_type_hints(Pretrain)
    fields = [each for each in dataclasses.fields(Pretrain) if each.name not in _UNSET]
    return [(each, hints[each.name]) for each in fields]


@cache
def _objectives_of(setting: str) -> tuple[str, ...]:
    """The objectives that have a setting of their own by this name; () if every objective has it."""
    return tuple(each for each in registry.names(_OBJECTIVES) if setting in load_objective(each).SETTINGS)


def _is_of(setting: str, objective: str) -> bool:
    return objective in (_objectives_of(setting) or (objective,))


def _not_of(setting: str, objective: str) -> str:
    known = " or ".join(f'"{each}"' for each in _objectives_of(setting))
    return f'{setting} is a setting of objective = {known}, and this is "{objective}". Leave it out.'


def _bad_setting(name: str, message: str) -> UsageError:
    return UsageError(message, code="bad-setting", key=name)


@dataclass(frozen=True)
class Pretrain:
    """Pre-train a new model of `size` on the corpus in a folder. A figure that is 0 is set by the size.

    objectives/ lists the settings of each objective. Raises UsageError for an impossible value.
    """

    corpus: Path = field(metadata={"help": "The folder that `heredity corpus build` wrote."})
    objective: str = choice(
        "causal", "Predict the next token, masked tokens, or which caption is an image's.", folder=_OBJECTIVES
    )
    size: str = setting("10M", "Approximate number of parameters, such as 10M or 1.5B.")
    architecture: str = setting(
        "",
        "Architecture. Causal: qwen3 (default), llama; masked: modernbert (default), bert; contrastive: clip"
        " (default), siglip.",
    )
    context: int = setting(1024, "Context length in tokens (text objectives).")
    tokens: int = setting(0, "Tokens to train on; 0: 20 per parameter (text objectives).")
    pairs: int = setting(0, "Pairs to train on; 0: each 30 times (contrastive only).")
    caption_tokens: int = setting(32, "Tokens at which a caption is cut (contrastive only).")
    patch_size: int = setting(8, "Patch size in pixels (contrastive only).")
    shift: bool = setting(True, "Shift each image a little, at random, each time (contrastive only).")
    batch_size: int = setting(0, "Tokens per step; contrastive: pairs.")
    lr: float = setting(0.0, "Peak learning rate.")
    layers: int = setting(0, "Layers.")
    hidden_size: int = setting(0, "Hidden size.")
    heads: int = setting(0, "Attention heads.")
    kv_heads: int = setting(0, "Key and value heads (causal only).")
    head_dim: int = setting(0, "Size of a head (causal only).")
    ffn_size: int = setting(0, "Hidden size of the feed-forward layers.")
    optimizer: Literal["muon", "adamw"] = setting(
        "muon", "Optimizer; muon: hidden matrices with Muon, the rest with AdamW."
    )
    schedule: Literal["wsd", "cosine", "constant"] = setting("wsd", "Learning-rate schedule.")
    warmup: float = setting(0.02, "Share of the steps in which the learning rate rises.")
    weight_decay: float = setting(0.1, "Weight decay of matrices other than embeddings.")
    grad_clip: float = setting(1.0, "Clip the global gradient norm to this value; 0 disables clipping.")
    z_loss: float = setting(1e-4, "Weight of the squared log partition function (text objectives).")
    mask_rate: float = setting(0.3, "Share of the tokens that are masked (masked only).")
    noise: Literal["mask", "80-10-10"] = setting(
        "mask",
        "Replacement of a masked token: the mask, or as in BERT also a random or the same one (masked).",
    )
    evaluations: int = setting(20, "Evaluations on the validation split during training.")
    validation_tokens: int = setting(100_000, "Validation tokens per evaluation (text objectives).")
    checkpoint_every: int = setting(100, "Steps between checkpoints.")
    spike: float = setting(2.0, "Nats above the median loss at which the run returns to its last checkpoint.")
    seed: int = setting(0, "Seed of everything random.")
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "Compute dtype; auto measures whether bfloat16 is faster than float32."
    )
    replicas: int = setting(
        1,
        "Groups of processes that each hold all weights; 1: weights are sharded over all processes.",
        is_recorded=False,
    )
    reduce: Literal["once", "each"] = setting(
        "once",
        "Reduce gradients over processes once per step, or after each microbatch, which takes less memory.",
        is_recorded=False,
    )
    recompute: bool = setting(
        False, "Recompute activations in the backward pass, which takes less memory.", is_recorded=False
    )
    recompute_every: int = setting(1, "With recompute: every n-th layer only.", is_recorded=False)
    compile: Literal["auto", "yes", "no"] = setting(
        "auto",
        "Compile chains of small operations on a CPU; auto: if the run is long enough (causal only).",
        is_recorded=False,
    )
    memory: float = setting(0.0, "GiB that may be used; 0: what is free.", is_recorded=False)
    licence: str = setting("unknown", "Licence of the model: the corpus's, if it has one.")
    name: str = field(default="", compare=False)
    base: Grown | None = field(default=None, compare=False)  # it is continued; it becomes the parent
    file: Path | None = field(default=None, compare=False)  # the TOML file that it was read from
    watch: Watch | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)
    dist: Any = field(default=None, compare=False)  # a train.distributed.DistContext; None: one process

    kind = "pretrain"

    @classmethod
    def read(cls, path: Path, given: Mapping[str, Any] | None = None, watch: Watch | None = None) -> Pretrain:
        """The recipe in a TOML file: see `read` of this module."""
        return read(path, given, watch)

    def __post_init__(self) -> None:
        self._fit()
        for each in dataclasses.fields(self):
            name, value = each.name, getattr(self, each.name)
            if name in _POSITIVE and value < 1:
                raise _bad_setting(name, f"{name} must be at least 1, not {value}.")
            if name in _NOT_NEGATIVE and value < 0:
                raise _bad_setting(name, f"{name} must not be negative, and is {value}.")
            if isinstance(value, float) and not math.isfinite(value):
                raise _bad_setting(name, f"{name} must be finite, and is {value}.")
        if self.seed >= 1 << 63:
            raise _bad_setting("seed", f"seed must be below 2^63, and is {self.seed}.")
        if self.warmup >= 1:
            raise _bad_setting("warmup", f"warmup must be below 1, and is {self.warmup:g}.")
        if self.spike <= 0:
            raise _bad_setting("spike", f"spike must be above 0, and is {self.spike:g}.")

    def _fit(self) -> None:
        """Fill in the default architecture. Raises UsageError for settings of another objective."""
        objective = load_objective(self.objective)
        if self.base is not None:
            from heredity.formats.weights import read_config

            model_type = str(read_config(self.base.folder).model_type)
            if self.objective != "causal":
                raise _bad_setting("objective", 'Only a base of objective = "causal" is continued.')
            if self.architecture not in ("", model_type):
                raise _bad_setting(
                    "architecture", f"'{self.base.record.name}' is of architecture = \"{model_type}\"."
                )
            if self.compile == "yes":
                raise _bad_setting("compile", 'A continued base is not compiled. Set compile = "no".')
            object.__setattr__(self, "architecture", model_type)
        else:
            if not self.architecture:
                object.__setattr__(self, "architecture", objective.ARCHITECTURE)
            if self.architecture not in (known := registry.names("train.models.architectures")):
                near = did_you_mean(self.architecture, known) or f" Known: {', '.join(known)}."
                raise UsageError(
                    f"architecture: there is none named '{self.architecture}'.{near}",
                    code="unknown-name",
                    key="architecture",
                )
            learns: str = registry.load("train.models.architectures", self.architecture).OBJECTIVE
            if learns != self.objective:
                raise UsageError(
                    f"'{self.architecture}' is an architecture of objective = \"{learns}\", and this is"
                    f' "{self.objective}", as of {objective.ARCHITECTURE}.',
                    code="unknown-key",
                    key="architecture",
                )
        for each in dataclasses.fields(self):
            is_given = getattr(self, each.name) != each.default
            if is_given and not _is_of(each.name, self.objective):
                raise UsageError(_not_of(each.name, self.objective), code="unknown-key", key=each.name)
        objective.check(self)

    @cached_property
    def text(self) -> Corpus:
        """The corpus, opened. Raises BadInput or Damaged."""
        from heredity.corpus import Corpus

        return Corpus.open(self.corpus)

    @cached_property
    def images(self) -> ImageCorpus:
        """The corpus of images, opened. Raises BadInput or Damaged."""
        from heredity.corpus import ImageCorpus

        corpus = ImageCorpus.open(self.corpus)
        if not len(corpus.split("validation")):
            raise UsageError(f"{self.corpus} has no validation pairs. Build it with a validation share.")
        return corpus

    @property
    def spec(self) -> PretrainObjective:
        """The module of the objective."""
        return load_objective(self.objective)

    def sizes(self, unit: str) -> dict[str, Any]:
        """The figures that replace the size's, under the names of train/models/shapes.py; 0: none."""
        names = (unit, "batch_size", "lr", *_SHAPE)
        return to_hashed(self.kind, {name: getattr(self, name) for name in names})

    @cached_property
    def dial(self) -> SizePreset:
        """Shape, tokens (or pairs), batch and learning rate. Raises UsageError."""
        with _naming(self.file, vars(self)):
            return self.spec.preset(self) if self.base is None else _continued_preset(self, self.base)

    @property
    def made_of(self) -> type[TransformerShape]:
        """The class of the architecture's shape (text objectives)."""
        built = registry.load("train.models.architectures", self.architecture)
        shape: type[TransformerShape] = built.SHAPE
        return shape

    @cached_property
    def is_fused(self) -> bool:
        """Whether chains of small operations are compiled: on one process on a CPU, if the run is long.

        Raises UsageError if compiling was asked for and cannot be done.
        """
        from heredity.train import kernels as fused
        from heredity.train.models import shapes

        if self.base is not None or self.compile == "no" or "compile" not in self.spec.SETTINGS:
            return False
        is_here = self.dist is None or (self.dist.is_single_process and self.dist.device.type == "cpu")
        is_long = 6.0 * shapes.n_parameters(self.dial.shape) * self.dial.tokens > _LONG
        if self.compile == "auto":
            return is_here and is_long and not fused.why_unavailable()
        if why := fused.why_unavailable() if is_here else "only one process on a CPU compiles":
            raise UsageError(f'Nothing can be compiled here ({why}). Set compile = "no".')
        return True

    @property
    def n_steps(self) -> int:
        """Steps until all tokens, or pairs, were trained on."""
        return max(1, math.ceil(self.dial.tokens / self.dial.batch))

    @property
    def every(self) -> int:
        """Steps between two evaluations; one more follows the last step."""
        return _every(self.n_steps, self.evaluations)

    def settings(self) -> dict[str, Any]:
        """The recorded settings under the names that ids hash, with the figures that the size set."""
        recorded = (each for each in dataclasses.fields(self) if each.compare)
        names = [each.name for each in recorded if each.metadata.get("is_recorded", True)]
        values = {name: getattr(self, name) for name in names if _is_of(name, self.objective)}
        dial, unit = self.dial, self.spec.UNIT
        values |= {unit: dial.tokens, "batch_size": dial.batch, "lr": dial.rate}
        values["corpus"] = self.spec.fingerprint(self)
        if self.base is not None:  # the parent sets them
            return to_hashed(self.kind, {k: v for k, v in values.items() if k not in _SET_BY_BASE})
        shape: dict[str, Any] = msgspec.to_builtins(dial.shape)  # its fields have the names that are hashed
        if not _is_of("context", self.objective):
            del shape["context"]
        return to_hashed(self.kind, values) | shape

    def workload(self, vocabulary: int = 0, side: int = 0, is_on_cpu: bool = False) -> Workload:
        """The work of this recipe, for a plan. vocabulary, side of an image in pixels: 0 for the corpus's.

        Without the corpus, an evaluation counts as many tokens as the recipe asks for, and no pairs. Raises
        UsageError.
        """
        from heredity.train.forecast import COSTS

        architecture = self.architecture
        if self.base is not None and architecture not in COSTS:
            architecture = "llama"  # the costs of the other decoders are nearly the same
        if architecture not in COSTS:
            raise UsageError(
                f"'{self.architecture}' cannot be planned yet; these can: {', '.join(COSTS)}.",
                key="architecture",
            )
        if side and self.spec.UNIT != "pairs":
            raise UsageError(
                f'--image-size is for images, and objective = "{self.objective}" has none. Leave it out.'
            )
        with naming(self.file):
            work = self.spec.workload(self, vocabulary, side)
        return msgspec.structs.replace(
            work,
            n_evaluated=-(-work.n_steps // _every(work.n_steps, self.evaluations)) * work.n_evaluated,
            optimizer=self.optimizer,
            architecture=architecture,
            bytes=4 if self.dtype == "float32" else 2,
            is_on_cpu=is_on_cpu,
        )

    def grow(self, store: Store) -> Grown | None:
        """Grow the child once, with all processes that torchrun started; None in all but the first.

        Only the first process writes to the store. Raises HeredityError if another process has ended.
        """
        from heredity.train.distributed import process_group

        with process_group(self.replicas, store.wanted_device) as dist:
            recipe = replace(self, dist=dist)
            if not dist.is_main_process:
                if dist.broadcast([]) == [1.0]:
                    recipe.join(store.training(recipe, self.parents))
                return None
            known = store.made_by(recipe, self.parents)
            dist.broadcast([float(known is None)])
            return known or store.grow(recipe, self.parents)

    @property
    def parents(self) -> list[Grown]:
        """The base that is continued, if there is one."""
        return [] if self.base is None else [self.base]

    def on(self, device: Device) -> Pretrain:
        """This recipe, which computes on a device, unless it computes in several processes."""
        from heredity.train.loop import placed

        return self._copied(replace(self, dist=placed(self.dist, device)), "text", "images")

    def at(self, folder: Path) -> Pretrain:
        """This recipe, with its checkpoints in a folder."""
        return self._copied(replace(self, folder=folder), "text", "images", "is_fused")

    def _copied(self, made: Pretrain, *names: str) -> Pretrain:
        """`made` with values that this recipe has read: a corpus may be large, and is opened once."""
        vars(made).update({name: vars(self)[name] for name in names if name in vars(self)})
        return made

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        """Train; write weights, tokenizer, training curve and samples into `out`."""
        if [each.record.id for each in parents] != [each.record.id for each in self.parents]:
            raise UsageError("Pretrain has no parent, or only its `base`.")
        folder = self.folder or out.parent / "training"
        with _naming(self.file), explain_full_disk(folder, 0):
            write = self.spec.train(self, folder)
            with phase(self.watch, "writing"):
                notes = write(out)
        name = self.name or f"{self.spec.child_name(self)}-{self.size.lower()}"
        family, licence = name, self.licence
        for base in (each.record for each in self.parents):
            name, family = self.name or f"{base.name}-continued", base.family
            licence = base.licence if licence == "unknown" else licence
        return Description(
            name=name,
            family=family,
            licence=licence,
            format="safetensors",
            modality=self.spec.MODALITY,
            notes=notes,
            versions={name: version(name) for name in ("torch", "transformers", "safetensors", "tokenizers")},
        )

    def join(self, folder: Path) -> None:
        """Compute this process's share of every step, for a process that is not the first."""
        with _naming(self.file):
            self.spec.train(self, folder)

    @property
    def training(self) -> str:
        """The digest in its checkpoints."""
        return digest([self.kind, self.settings(), *(each.record.id for each in self.parents)])
