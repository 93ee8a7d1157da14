"""A LoRA adapter in PEFT's files: its matrices, DoRA's magnitudes, and the tensors that it replaces.

PEFT's `target_parameters` writes an update of the two parameters that hold a layer's experts, `gate_up_proj`
and `down_proj`. It stacks one pair of matrices for each expert: A is (experts * rank, in), B is (out, rank *
experts). In B the columns of one rank are next to each other. Of two parameters in one module, the first is
named `base_layer`. PEFT before 0.19 took a parameter (experts, out, in) for (experts, in, out): there A and B
are turned.

Promises: only safetensors and JSON are opened. A setting of `adapter_config.json` that changes the forward
pass has the effect that it has in PEFT, or is refused by name. All values are finite. Each expert gets the
updates of `gate_proj`, `up_proj` and `down_proj`, under these names.

Sources: Hu et al. 2021 (2106.09685); rsLoRA, Kalajdzievski 2023 (2312.03732); DoRA, Liu et al. 2024
(2402.09353); ParamWrapper of PEFT 0.18.1, 0.19.1 and 0.21.2 (peft/tuners/lora/layer.py).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec
import torch
from safetensors import safe_open

from heredity.core.errors import Damaged, Unavailable
from heredity.core.sanitize import compile_pattern
from heredity.formats.safetensors_io import read_safetensors
from heredity.formats.weights import read_json

if TYPE_CHECKING:
    import regex


NESTED = ".base_layer"
PARAMETERS = ("gate_up_proj", "down_proj")  # in the order in which PEFT wraps them: the first is innermost
_MAX_EXPERTS = 4096
_DIRECTED = 19  # PEFT 0.19 tells inputs from outputs
_ALL = re.compile(rf"(.+\.experts)((?:{re.escape(NESTED)})*)")
_ONE = re.compile(r"(.+)\.mlp\.(?:experts\.(\d+)\.(gate|up|down)_proj|gate)")
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


class Misfit(ValueError):
    """Matrices that are not those of experts; its text gives the reason."""


class Stack(NamedTuple):
    """The matrices of one parameter of a module: A (experts * rank, in) and B (out, rank * experts)."""

    module: str  # without `base_layer`
    parameter: str
    a: torch.Tensor
    b: torch.Tensor
    is_turned: bool = False  # as PEFT wrote them before 0.19

    def turned(self) -> Stack:
        return self._replace(is_turned=True)


def is_of_parameter(module: str, parameter: str, targets: Sequence[str]) -> bool:
    """Whether `target_parameters` names a parameter of a module, as PEFT compares them."""
    key = f"{module}.{parameter}"
    return any(key == target or key.endswith(f".{target}") for target in targets)


def is_there(target: str, modules: Iterable[str]) -> bool:
    """Whether an adapter has an update of a name in `target_parameters`. modules: those that it updates."""
    parameter = target.rpartition(".")[2]
    stacked = (match[1] for module in modules if (match := _ALL.fullmatch(module)))
    updated = stacked if parameter in PARAMETERS else modules
    return any(is_of_parameter(module, parameter, [target]) for module in updated)


def take_stacks(
    parts: dict[str, dict[str, torch.Tensor]], targets: Sequence[str], version: str
) -> list[Stack]:
    """Take the stacked matrices of experts out of an adapter's parts by module.

    version: of the PEFT that wrote them; "" if it is unknown.
    Raises Misfit if the parameters that they belong to are not known.
    """
    by_module: dict[str, list[tuple[int, str]]] = {}
    for name in parts:
        if match := _ALL.fullmatch(name):
            by_module.setdefault(match[1], []).append((len(match[2]), name))
    all_stacks: list[Stack] = []
    for module, names in by_module.items():
        parameters = [each for each in PARAMETERS if is_of_parameter(module, each, targets)]
        if len(parameters) != len(names):
            raise Misfit(f"{module[:80]} has {len(names)} updates, and target_parameters names {parameters}")
        stacks = []
        for parameter, (_, name) in zip(parameters, sorted(names, reverse=True), strict=True):
            part = parts.pop(name)
            if part.keys() != {"A", "B"} or part["A"].ndim != 2 or part["B"].ndim != 2:
                raise Misfit(f"{module[:80]}.{parameter} has not the matrices A and B alone")
            stacks.append(Stack(module, parameter, part["A"], part["B"]))
        all_stacks += _directed(stacks, version)
    return all_stacks


def _directed(stacks: Sequence[Stack], version: str) -> Sequence[Stack]:
    """Return the stacks of a module, with those turned that an older PEFT wrote.

    Both together show it by their sizes. One by itself does not: then the version tells it.
    Raises Misfit if neither does.
    """
    sizes = [(stack.a.shape[1], len(stack.b)) for stack in stacks]
    if len(sizes) == 2:
        (n_in, n_out), (n_inner, n_last) = sizes
        if n_in == n_last and n_out == 2 * n_inner:
            return stacks
        if n_out == n_inner and n_in == 2 * n_last:
            return [stack.turned() for stack in stacks]
        raise Misfit(
            f"{stacks[0].module[:80]} has updates of the sizes {sizes}, which are not those of experts"
        )
    number = re.match(r"0\.(\d+)", version)
    if number is None and not version[:1].isdigit():
        raise Misfit(
            f"{stacks[0].module[:80]} has one update of experts, and no peft_version tells its sides"
        )
    is_old = number is not None and int(number[1]) < _DIRECTED
    return [stack.turned() for stack in stacks] if is_old else stacks


def of_each_expert(stack: Stack, rank: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield module, A (rank, in) and B (out, rank) of each matrix of each expert.

    Raises Misfit if the rank does not divide the stacks.
    """
    n_experts = len(stack.a) // rank
    if not 0 < n_experts <= _MAX_EXPERTS or not len(stack.a) == stack.b.shape[1] == rank * n_experts:
        raise Misfit(
            f"{stack.module[:80]}.{stack.parameter} has stacks of {len(stack.a)} and {stack.b.shape[1]} for"
            f" the rank {rank}"
        )
    a, b = stack.a.reshape(n_experts, rank, -1), stack.b.reshape(len(stack.b), rank, n_experts)
    for i in range(n_experts):
        first, one = a[i], b[:, :, i].contiguous()
        if stack.is_turned:
            first, one = one.t().contiguous(), first.t().contiguous()
        if stack.parameter == "down_proj":
            yield f"{stack.module}.{i}.down_proj", first, one
            continue
        if len(one) % 2:
            raise Misfit(f"{stack.module[:80]}.gate_up_proj has {len(one)} outputs, which are no two halves")
        for name, half in zip(("gate_proj", "up_proj"), one.chunk(2), strict=True):
            yield f"{stack.module}.{i}.{name}", first, half


def name_in_files(module: str) -> str:
    """Return what Mixtral's files call a module of transformers' experts, or their router; "" if neither."""
    if (match := _ONE.fullmatch(module)) is None:
        return ""
    at = f"{match[1]}.block_sparse_moe"
    return f"{at}.experts.{match[2]}.{_MIXTRAL[match[3]]}" if match[2] else f"{at}.gate"


def joined(module: str, names: Collection[str]) -> str:
    """Return the one tensor in which a base keeps the experts of a module; "" if it does not."""
    start, _, rest = module.partition(".experts.")
    parameters = {f"{start}.experts.{each}" for each in PARAMETERS if rest}
    return next((each for each in sorted(parameters) if each in names), "")


CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ADVICE = "Merge it with PEFT's merge_and_unload, save the result and adopt that."
# Fields that say how an adapter was trained, or which layers got one: the tensors say that too.
_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "init_lora_weights", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "runtime_config", "qalora_group_size",
})  # fmt: skip
# Other initializations change the base as well, so that the adapter is of another model than its base.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
_MAX_PATTERNS, _LONGEST_PATTERN = 4096, 300
_SAFE_PATTERN = re.compile(r"(?:[\w.\\|()\[\]^$-]|(?<=[d.\]])[*+](?![*+?{]))*")
_LARGEST = 65_504.0  # of fp16: an update beyond it makes a model answer with nothing
Rank = Annotated[int, msgspec.Meta(gt=0, lt=1 << 62)]
_Compiled = Sequence[tuple["regex.Pattern[str]", float]]
_PREFIX = "base_model.model."
_LOW_RANK = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")
_BIAS, _MAGNITUDE = ".lora_B.bias", re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
_OTHER = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?)?(\.base_layer)?\.(weight|bias)")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_BLOCK = re.compile(r"(?:^|\.)h\.\d+\.")
_HEADS = ("lm_head", "embed_out")
HEAD = "lm_head.weight"


class AdapterConfig(msgspec.Struct, frozen=True):
    """The fields of adapter_config.json that change what an adapter computes."""

    peft_type: str
    r: Rank
    lora_alpha: float
    task_type: str | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool | None = False
    use_dora: bool | None = False
    lora_bias: bool | None = False
    fan_in_fan_out: bool | None = False
    ensure_weight_tying: bool | None = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    peft_version: str | None = None
    init_lora_weights: bool | str | None = True
    alora_invocation_tokens: list[Annotated[int, msgspec.Meta(ge=0)]] | None = None


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update of one linear layer: scale * B A, in fp32."""

    a: torch.Tensor  # (rank, in)
    b: torch.Tensor  # (out, rank)
    scale: float
    bias: torch.Tensor | None = None  # (out,) of B, before the scale
    magnitude: torch.Tensor | None = None  # (out,) DoRA's length of each row of the updated matrix
    is_transposed: bool = False  # the base keeps this matrix as (in, out)

    def delta(self) -> torch.Tensor:
        """Return scale * B A, shaped as the matrix that it is added to."""
        product: torch.Tensor = self.scale * (self.b @ self.a)
        return product.T if self.is_transposed else product

    def updated(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the updated matrix in fp32; of DoRA with each row at its magnitude."""
        result = weight.float() + self.delta()
        if self.magnitude is None:
            return result
        factor = row_factor(self.magnitude, result.T if self.is_transposed else result)
        return result * (factor if self.is_transposed else factor[:, None])


def row_factor(magnitude: torch.Tensor, updated: torch.Tensor) -> torch.Tensor:
    """Return DoRA's factor (out,) on the rows of an updated matrix (out, in)."""
    length: torch.Tensor = torch.linalg.norm(updated, dim=1)
    return magnitude / length


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: its updates by module, and the base's tensors that it replaces, by name."""

    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, torch.Tensor]
    keeps_ties: bool = True  # a new embedding is also the head of a model in which they are one
    invocation: tuple[int, ...] = ()  # of an activated LoRA (weights.Gate): the tokens that wake it

    def fitted(
        self, names: Collection[str], is_tied: bool, place: Path, model_type: object = None
    ) -> Adapter:
        """Return the adapter under the names of its base's tensors, turned as they are.

        model_type: of the base's config.json. PEFT asks each layer of the base whether it is turned:
        `fan_in_fan_out` in the file is that of its last one.
        Raises Damaged for a tensor or module that the base lacks. The head of a tied base has no tensor: its
        update keeps the name of the module, "lm_head".
        """
        ends = set(names)
        low = {
            _embedding_name(each, ".weight", ends, is_tied, place): value
            for each, value in self.low_rank.items()
        }
        low = {
            name: replace(
                value,
                is_transposed=_is_embedding(name)
                or (model_type in ("gpt2", "openai-gpt") and _BLOCK.search(name) is not None),
            )
            for name, value in low.items()
        }
        whole = {
            f"{_embedding_name(module, f'.{kind}', ends, is_tied, place)}.{kind}": value
            for (module, _, kind), value in ((n.rpartition("."), v) for n, v in self.whole.items())
        }
        return replace(self, low_rank=low, whole=whole)

    def changed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the base with the adapter merged: computed in fp32 and rounded once.

        Of a linear layer's bias with `lora_bias` too. Raises Damaged if the shapes differ.
        """
        module, _, kind = name.rpartition(".")
        if (new := self.whole.get(name)) is not None:
            if new.shape != tensor.shape and not (_is_end(module) and new.shape[1:] == tensor.shape[1:]):
                raise _no_fit(name, new.shape, tensor.shape)  # the number of tokens may grow
            tensor = new.to(tensor.dtype)
        if (low := self.low_rank.get(module)) is None:
            return tensor
        if kind == "bias":
            return tensor if low.bias is None else (tensor.float() + low.scale * low.bias).to(tensor.dtype)
        shape = (low.b.shape[0], low.a.shape[1])
        if (shape[::-1] if low.is_transposed else shape) != tuple(tensor.shape):
            raise _no_fit(name, shape, tensor.shape)
        return low.updated(tensor).to(tensor.dtype)


def read_config(folder: Path) -> AdapterConfig:
    """Read and check adapter_config.json.

    Raises Unavailable, which names the setting, for an adapter of another form. Raises Damaged for a config
    that makes no sense.
    """
    path = folder / CONFIG
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise Unavailable(f"{path}: peft_type is {str(raw.get('peft_type'))[:40]}, not LORA. {ADVICE}")
    known = {*_HARMLESS, *AdapterConfig.__struct_fields__}
    if odd := sorted(key for key, value in raw.items() if value and key not in known):
        raise Unavailable(f"{path.name}: heredity does not read {', '.join(odd)[:200]}. {ADVICE}")
    try:
        config = msgspec.convert({k: v for k, v in raw.items() if k in known}, AdapterConfig)
    except msgspec.ValidationError as error:
        raise Damaged(f"{path}: does not read: {error}.") from None
    if config.init_lora_weights not in _INITIAL:
        raise Unavailable(
            f"{path}: init_lora_weights is {str(config.init_lora_weights)[:40]}, which changed the base too. "
            "Save it with PEFT's path_initial_model_for_weight_conversion, or merge it and adopt the result."
        )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise Unavailable(f"{path}: task_type is {config.task_type[:40]}: such a model writes no text.")
    if config.alora_invocation_tokens:
        _refuse_beside_invocation(path, config)
    for patterns in (config.rank_pattern, config.alpha_pattern):
        _check_patterns(path, patterns or {})
    if not all(math.isfinite(each) for each in (config.lora_alpha, *(config.alpha_pattern or {}).values())):
        raise Damaged(f"{path}: lora_alpha must be a number.")
    return config


def read_adapter(folder: Path, pattern_seconds: float = 20.0) -> Adapter:
    """Read an adapter. pattern_seconds: for its patterns on all of its modules.

    Raises Unavailable as `read_config` does, and Damaged for tensors that contradict the config.
    """
    config, path = read_config(folder), folder / TENSORS
    parts: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    in_place: set[str] = set()
    for name, tensor in _tensors(path):
        if (part := _part(name)) is not None:
            parts.setdefault(part[0], {})[part[1]] = tensor.float()
            continue
        module, is_base, kind = _whole(path, name, config)
        whole[f"{module}.{kind}"] = tensor
        in_place |= {module} if is_base else set()
    _refuse_missing(path, config, parts, whole)
    scales = _Scales(folder / CONFIG, config, pattern_seconds)
    try:
        low_rank = dict(_of_experts(parts, config, scales))
    except Misfit as error:
        raise Unavailable(f"{path}: {error}. {ADVICE}") from None
    low_rank |= {module: _low_rank(path, module, each, config, scales) for module, each in parts.items()}
    _refuse_overflow(path, low_rank)
    saved = [each for each in whole if _is_embedding(each.rpartition(".")[0])]
    keeps = bool(config.ensure_weight_tying) or any(n.rpartition(".")[0] in in_place for n in saved)
    invocation = tuple(config.alora_invocation_tokens or ())
    if invocation and (other := sorted({*whole, *filter(_is_end, low_rank)})):
        raise Unavailable(f"{path}: an activated LoRA that changes {other[0][:80]} is not read.")
    return Adapter(low_rank, whole, keeps, invocation)


def embedding_of(names: Collection[str]) -> str:
    """Return the name of the token embedding among a model's tensors; "" if it is unknown."""
    embeddings = [
        name for name in names if name.endswith(".weight") and _is_embedding(name[: -len(".weight")])
    ]
    return embeddings[0] if len(embeddings) == 1 else ""


def _refuse_beside_invocation(path: Path, config: AdapterConfig) -> None:
    """Raise Unavailable for an activated LoRA that PEFT does not wake, or that is more than matrices."""
    if config.task_type != "CAUSAL_LM":
        raise Unavailable(
            f"{path}: it has alora_invocation_tokens, and PEFT wakes such an adapter only with the task_type"
            " CAUSAL_LM."
        )
    is_more = {
        "bias": config.bias != "none", "use_dora": config.use_dora, "lora_bias": config.lora_bias,
        "modules_to_save": config.modules_to_save, "target_parameters": config.target_parameters,
    }  # fmt: skip
    if more := next((key for key, is_set in is_more.items() if is_set), ""):
        raise Unavailable(f"{path}: heredity does not read {more} beside alora_invocation_tokens.")


# --- names -----------------------------------------------------------------------------------------


def _part(name: str) -> tuple[str, str] | None:
    """Return the module and the part ("A", "B", "bias", "magnitude") of a tensor of an update."""
    if match := _LOW_RANK.fullmatch(name):
        return match[1], match[2]
    if name.endswith(_BIAS):
        return name.removesuffix(_BIAS), "bias"
    match = _MAGNITUDE.fullmatch(name)
    return (match[1], "magnitude") if match else None


def _whole(path: Path, name: str, config: AdapterConfig) -> tuple[str, bool, str]:
    """Return module, whether it replaces the base's own tensor, and kind of a tensor that is kept whole.

    Raises Unavailable for a tensor that the config does not explain.
    """
    match = _OTHER.fullmatch(name)
    if match is None or ".lora_" in name:
        raise Unavailable(f"{path} holds {name[:80]!r}, which heredity does not read. {ADVICE}")
    module, kind = match[1], match[3]
    is_saved = any(module.endswith(each) for each in config.modules_to_save or ())
    # embedding and head are saved when the vocabulary grew
    if not (is_saved or _is_end(module) or (kind == "bias" and config.bias != "none")):
        raise Unavailable(f"{path} holds {name[:80]!r}, which its {CONFIG} does not explain. {ADVICE}")
    return module, not is_saved, kind


def _is_end(module: str) -> bool:
    return _is_embedding(module) or module.rpartition(".")[2] in _HEADS


def _is_embedding(module: str) -> bool:
    return module.rpartition(".")[2] in _EMBEDDINGS


def _embedding_name(module: str, end: str, names: set[str], is_tied: bool, place: Path) -> str:
    """Return the base's name of a module: a checkpoint may leave out the name of the inner model, or add
    it."""
    if f"{module}{end}" in names:
        return module
    if (other := name_in_files(module)) and f"{other}{end}" in names:
        return other
    if one := joined(module, names):
        raise Unavailable(
            f"{place}: it adapts each expert, and its base keeps them in one tensor, {one[:80]}. {ADVICE}"
        )
    words = module.split(".")
    for at in range(1, len(words)):
        if f"{'.'.join(words[at:])}{end}" in names:
            return ".".join(words[at:])
    inner = module.removeprefix("model.")
    longer = [name for name in names if name.endswith(f".{inner}{end}")]
    if len(longer) == 1:
        return longer[0][: -len(end)]
    if is_tied and words[-1] in _HEADS:
        return HEAD.rpartition(".")[0]
    raise Damaged(f"{place}: it adapts {module[:80]}, which its base does not have.", code="adapter-misfit")


def _no_fit(name: str, shape: Collection[int], base: Collection[int]) -> Damaged:
    shapes = f"{[*shape]}, and the base's {[*base]}"
    return Damaged(f"The adapter does not fit its base: {name[:80]} has {shapes}.", code="adapter-misfit")


# --- tensors ---------------------------------------------------------------------------------------


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor by its name without PEFT's prefix. Raises Damaged."""
    if not path.is_file():
        raise Damaged(f"{path}: missing")
    read_safetensors(path)  # its sizes, before anything is allocated
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor: torch.Tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise Damaged(f"{path}: {name[:80]!r} has the type {tensor.dtype}.")
                if not bool((tensor.float().abs() <= _LARGEST).all()):
                    raise Damaged(
                        f"{path}: {name[:80]!r} holds NaN, infinity or a number above {_LARGEST:,.0f}."
                    )
                yield name.removeprefix(_PREFIX), tensor
    except (OSError, ValueError, RuntimeError) as error:
        raise Damaged(f"{path}: cannot be read ({error}).") from None


def _of_experts(
    parts: dict[str, dict[str, torch.Tensor]], config: AdapterConfig, scales: _Scales
) -> Iterator[tuple[str, LowRank]]:
    """Take the stacks of experts out of an adapter's parts, and yield the update of each expert's matrix."""
    version = config.peft_version or ""
    for stack in take_stacks(parts, config.target_parameters or (), version):
        rank, scale = scales.of_module(f"{stack.module}.{stack.parameter}")
        for module, a, b in of_each_expert(stack, rank):
            yield module, LowRank(a, b, scale)


def _low_rank(
    path: Path, module: str, parts: Mapping[str, torch.Tensor], config: AdapterConfig, scales: _Scales
) -> LowRank:
    """Return the update of a module. Raises Damaged if its tensors do not go together."""
    if not {"A", "B"} <= parts.keys() or parts["A"].ndim != 2 or parts["B"].ndim != 2:
        raise Damaged(f"{path}: not the matrices A and B of an adapter: {module[:80]}.")
    a, b, magnitude = parts["A"], parts["B"], parts.get("magnitude")
    rank, scale = scales.of_module(module)
    if not len(a) == b.shape[1] == rank:
        raise Damaged(
            f"{path}: {module[:80]} has the rank {len(a)} and {b.shape[1]}, and {CONFIG} says {rank}."
        )
    for vector in (parts.get("bias"), magnitude):
        if vector is not None and vector.numel() != len(b):
            raise Damaged(f"{path}: {module[:80]} has a vector of {vector.numel()} for {len(b)} outputs.")
    is_embedding = _is_embedding(module)
    return LowRank(
        a, b, scale, parts.get("bias"), None if magnitude is None else magnitude.flatten(),
        is_transposed=is_embedding or bool(config.fan_in_fan_out),
    )  # fmt: skip


def _refuse_overflow(path: Path, low_rank: Mapping[str, LowRank]) -> None:
    """Raise Damaged if a number of an update can be so large that the model computes infinity."""
    for module, low in low_rank.items():
        rows, largest = low.b.abs().sum(1), low.a.abs().flatten()
        reach = float(rows.max()) * float(largest.max()) if len(rows) and len(largest) else 0.0
        if not abs(low.scale) * max(1.0, reach) <= _LARGEST:
            raise Damaged(
                f"{path}: the update of {module[:80]} can be larger than {_LARGEST:,.0f}, so the model would"
                f" answer with nothing. Check lora_alpha and the tensors."
            )


def _refuse_missing(
    path: Path, config: AdapterConfig, parts: Mapping[str, Mapping[str, object]], whole: Collection[str]
) -> None:
    """Raise Unavailable where the config announces tensors that are not there, or keeps silent of some."""
    if not parts and not whole:
        raise Damaged(f"{path}: not the matrices A and B of an adapter.")
    pairs = {"use_dora": "magnitude", "lora_bias": "bias"}
    for key, part in pairs.items():
        is_set = bool(config.use_dora if key == "use_dora" else config.lora_bias)
        for module, each in parts.items():
            if (part in each) != is_set:
                raise Unavailable(
                    f"{path}: {key} is {is_set} in {CONFIG}, unlike the tensors of {module[:80]}."
                )
            if is_set and part == "magnitude" and _is_embedding(module):
                raise Unavailable(f"{path}: heredity does not read use_dora on an embedding. {ADVICE}")
    modules = {name.rpartition(".")[0] for name in whole}
    for name in config.modules_to_save or ():
        if not any(module.endswith(name) for module in modules):
            raise Unavailable(f"{path}: modules_to_save names {name[:80]}, and no tensor of it is there.")
    for name in config.target_parameters or ():
        if not is_there(name, parts):
            raise Unavailable(f"{path}: target_parameters names {name[:80]}, and no tensor of it is there.")


# --- patterns --------------------------------------------------------------------------------------


def _check_patterns(path: Path, patterns: Mapping[str, float]) -> None:
    """Raise Unavailable for patterns whose matching could take long: they are regular expressions."""
    if len(patterns) > _MAX_PATTERNS:
        raise Unavailable(f"{path}: {len(patterns):,} patterns are more than {_MAX_PATTERNS:,}.")
    for pattern in patterns:
        if len(pattern) > _LONGEST_PATTERN or not _SAFE_PATTERN.fullmatch(pattern):
            raise Unavailable(f"{path}: the pattern {pattern[:80]!r} is too complex to match. {ADVICE}")
        try:
            re.compile(pattern)  # PEFT's own reader
            compile_pattern(pattern)
        except (re.error, ValueError, RecursionError) as error:
            raise Damaged(f"{path}: the pattern {pattern[:80]!r} does not read ({error}).") from None


class _Scales:
    """Rank and scale of each module of an adapter, within a limit of time.

    Patterns are matched in the order of the file to the end of a module's name, as PEFT does.
    """

    def __init__(self, place: Path, config: AdapterConfig, seconds: float) -> None:
        self._place, self._config, self._seconds = place, config, seconds
        self._ranks, self._alphas = _compiled(config.rank_pattern), _compiled(config.alpha_pattern)
        self._end = time.monotonic() + seconds

    def of_module(self, module: str) -> tuple[int, float]:
        """Return rank and scale: alpha / r, or alpha / sqrt(r) of a rank-stabilized adapter."""
        config = self._config
        if is_of_parameter(module, "weight", config.target_parameters or ()):
            module += ".weight"  # PEFT matches the name of the parameter
        rank = self._first(self._ranks, module, config.r)
        alpha = self._first(self._alphas, module, config.lora_alpha)
        return int(rank), alpha / (math.sqrt(rank) if config.use_rslora else rank)

    def _first(self, patterns: _Compiled, module: str, default: float) -> float:
        """Return the value of the first pattern that matches."""
        try:
            for pattern, value in patterns:
                if (left := self._end - time.monotonic()) <= 0:
                    raise TimeoutError
                if pattern.match(module, timeout=left):
                    return value
        except TimeoutError:
            raise Unavailable(
                f"{self._place}: its patterns take more than {self._seconds:g} seconds to match. {ADVICE}"
            ) from None
        return default


def _compiled(patterns: Mapping[str, float] | None) -> _Compiled:
    return [(compile_pattern(rf"(.*\.)?({each})$"), value) for each, value in (patterns or {}).items()]
