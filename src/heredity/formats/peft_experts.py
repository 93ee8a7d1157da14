"""An update of the parameters that hold all experts of a layer, as PEFT's `target_parameters` writes it.

transformers keeps the matrices of a layer's experts in two parameters, `gate_up_proj` and `down_proj`. PEFT
stacks one pair of matrices for each expert: A is (experts * rank, in), B is (out, rank * experts). In B the
columns of one rank are next to each other. Of two parameters in one module, the first is named `base_layer`.
PEFT before 0.19 took a parameter (experts, out, in) for (experts, in, out): there A and B are turned.

Promises: each expert gets the updates of `gate_proj`, `up_proj` and `down_proj`, under these names.
Leaves to others: their names in the files of a base (peft.py).

Source: ParamWrapper of PEFT 0.18.1, 0.19.1 and 0.21.2 (peft/tuners/lora/layer.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

NESTED = ".base_layer"
PARAMETERS = ("gate_up_proj", "down_proj")  # in the order in which PEFT wraps them: the first is innermost
_MOST_EXPERTS = 4096
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
    found: list[Stack] = []
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
        found += _directed(stacks, version)
    return found


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
    if not 0 < n_experts <= _MOST_EXPERTS or not len(stack.a) == stack.b.shape[1] == rank * n_experts:
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
    found = {f"{start}.experts.{each}" for each in PARAMETERS if rest}
    return next((each for each in sorted(found) if each in names), "")
