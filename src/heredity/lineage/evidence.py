"""The evidence that a model descends from another: the shapes and values of its weights.

Promises: a few million numbers are in memory at a time. Tensors are compared bit by bit; cosine, distance and
ranks are of samples. A contradiction is returned as text, for the refusal.
Leaves to others: claims of its files, tokens, settings and refusing
(recipes/adopt.py), and words (catalog.py).

Models that were trained apart share no direction in the space of weights. The cosine of their matrices is
near zero; tuning, merging and quantizing keep it near one (HuRef, Zeng et al. 2023, 2312.04828). Its mean
counts every matrix once: some hold a pattern of large numbers from the start, such as A_log of a Mamba.

An abliterated model has lost one direction of what its layers write (Arditi et al. 2024, 2406.11717). The
largest change of such a matrix lies in that direction, and of the parent's energy in it little is left.
Tuning, merging and rounding leave nearly all of it (bench/abliteration.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heredity.core.errors import Damaged
from heredity.core.progress import Watch, phase
from heredity.formats.gguf import read_gguf
from heredity.formats.safetensors_io import SafeTensor, read_safetensors

if TYPE_CHECKING:
    import torch

    from heredity.formats.packed import QuantizedRows, Reader
    from heredity.formats.peft import LowRank

RELATED = 0.5  # the smallest cosine of a descendant's matrices with its ancestor's
# Of DoRA's magnitudes. Training moves them, and position codes and outliers make the lengths of rows alike in
# unrelated layers, too. Between the two numbers they show nothing.
_UNRELATED, _MAGNITUDES = 0.1, 0.9
_CHUNK = 1 << 20  # numbers that are compared at once
_WHOLE = 1 << 24  # numbers of a quantized matrix of `WRITES` that are unpacked at most
_SAMPLES = 4  # matrices whose change is decomposed
_SAMPLE = 512  # rows and columns of such a matrix
_HELD = 0.99  # share of the change that the counted singular values hold
_LAYER = re.compile(r"(?:layers?|h|blocks|block)\.(\d+)\.")
# Masks and position codes that older versions of transformers saved with the weights.
_BUFFER, _MASK = re.compile(r"\.(?:inv_freq|masked_bias)$"), re.compile(r"\.(?:attn|attention)\.bias$")
# Matrices whose outputs are added to the residual stream, of experts too.
WRITES = re.compile(r".*\.(self_attn\.o_proj|down_proj|experts\.\d+\.w2)\.weight")
_COLUMNS = 64  # of such a matrix that are compared
_LOST = 0.25  # share of the parent's energy along a direction, below which the direction is lost
_COARSE = {"F64": 0, "F32": 1, "F16": 2, "BF16": 2}  # of two types, the rounder one decides equality


@dataclass
class Findings:
    """The evidence so far: the fields of core.records.Evidence, and `against`, the contradictions.

    watch: gets the count of the tensors that are compared.
    """

    watch: Watch | None = None
    agrees: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    n_tensors: int = 0
    n_equal: int = 0
    cosine: float | None = None
    distance: float | None = None
    ranks: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    worst_step: float | None = None
    within_step: float | None = None
    n_written: int = 0
    n_lost: int = 0

    def compare_writes(self, child: torch.Tensor, parent: torch.Tensor) -> None:
        """Count a matrix of `WRITES`, and whether it lost the direction of its largest change."""
        import torch

        if child.ndim != 2 or not child.numel():
            return
        a, b = child[:, :_COLUMNS].float(), parent[:, :_COLUMNS].float()
        if not bool(torch.isfinite(a - b).all()):
            raise Damaged("A matrix holds values that are no numbers.")
        direction = torch.linalg.svd(a - b, full_matrices=False).U[:, 0]
        left, before = ((direction @ each).square().sum() for each in (a, b))
        self.n_written += 1
        self.n_lost += bool(left < _LOST * before)

    def counted(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the names of the tensors that are compared, in order, and report their count."""
        import torch  # noqa: F401  # first, as it takes seconds that are not those of a tensor

        ordered = sorted(names)
        with phase(self.watch, "comparing", n_total=len(ordered), unit="tensors") as meter:
            yield from meter.each(ordered, str)


# --- values ----------------------------------------------------------------------------------------


class _Sums:
    """Products of two models' matrices."""

    def __init__(self) -> None:
        self.cosines = self.other = self.change = 0.0
        self.n = 0

    def add(self, child: torch.Tensor, parent: torch.Tensor) -> None:
        """Add two matrices of one shape. Zeros are unrelated to anything but zeros."""
        a, b = child.double().flatten(), parent.double().flatten()
        own, other = float(a @ a), float(b @ b)
        if own or other:
            self.cosines += float(a @ b) / math.sqrt(own * other) if own and other else 0.0
            self.other += other
            self.change += float((a - b).square().sum())
            self.n += 1

    def put(
        self, findings: Findings, what: str = "matrices", least: float = RELATED, shown: float = RELATED
    ) -> None:
        """Write cosine and distance from `shown` on. A cosine below `least` contradicts the descent."""
        if not self.n:
            return
        cosine = self.cosines / self.n
        distance = math.sqrt(self.change / self.other) if self.other else math.inf
        if cosine >= shown:
            findings.cosine, findings.distance = cosine, distance
        elif not cosine >= least:  # of NaN, too
            findings.against.append(
                f"its {what} have the cosine {cosine:.3f} with the parent's, and those of a descendant have"
                f" at least {shown} (distance {distance:.3g})"
            )


Places = Mapping[str, tuple[Path, SafeTensor]]


def places(folder: Path) -> dict[str, tuple[Path, SafeTensor]]:
    """Every tensor of a folder by name: its file, and its entry of the header."""
    return {
        name: (path, entry)
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in read_safetensors(path).items()
    }


def compare_whole(child: Path, parent: Path, findings: Findings) -> None:
    """Compare two folders of whole weights: shapes, equal tensors, cosine, and the rank of the change."""
    stored, theirs = _weights(places(child)), _weights(places(parent))
    names = _parent_names(stored, theirs)
    ours = {new: stored[name] for name, new in names.items()}
    own = {new: name for name, new in names.items()}
    if why := other_shapes(ours, theirs):
        findings.against.append(why)
        return
    findings.agrees.append("shapes")
    sums, changed = _Sums(), []
    for name in findings.counted(ours.keys() & theirs.keys()):
        if ours[name][1].shape != theirs[name][1].shape:
            continue  # the vocabulary grew
        is_equal = _compare(name, ours, theirs, findings, sums, own[name])
        if WRITES.fullmatch(name) and _is_layer_matrix(name, theirs[name][1]):
            findings.compare_writes(_columns(ours[name][0], own[name]), _columns(theirs[name][0], name))
        if is_equal is False and _is_layer_matrix(name, theirs[name][1]):
            changed.append(name)
    if not sums.n:
        findings.against.append("it has no matrix that could be compared")
    sums.put(findings)
    for at in range(min(_SAMPLES, len(changed))):
        name = changed[at * len(changed) // _SAMPLES if len(changed) > _SAMPLES else at]
        change = _corner(ours[name][0], own[name]) - _corner(theirs[name][0], name)
        import torch

        if not bool(torch.isfinite(change).all()):
            raise Damaged("A matrix holds values that are no numbers.")
        energy = torch.linalg.svdvals(change.double()).square().cumsum(0)
        rank, size = int((energy < _HELD * energy[-1]).sum()) + 1, len(energy)
        findings.ranks.append(rank)
        findings.sizes.append(size)


def _weights(where: Places) -> Places:
    """The tensors without the buffers that older files hold, too."""
    return {
        name: each
        for name, each in where.items()
        if not (_BUFFER.search(name) or (_MASK.search(name) and len(each[1].shape) == 4))
    }


def _parent_names(ours: Places, theirs: Places) -> dict[str, str]:
    """The parent's name of each tensor of a child: a file may leave out the name of the inner model."""
    starts = [{name[: m.start()] for name in each if (m := _LAYER.search(name))} for each in (ours, theirs)]
    if len(starts[0]) != 1 or len(starts[1]) != 1 or starts[0] == starts[1]:
        return {name: name for name in ours}
    (own,), (other,) = starts
    moved = {name: f"{other}{name[len(own) :]}" if name.startswith(own) else name for name in ours}
    return {name: new if new in theirs else name for name, new in moved.items()}


def other_shapes(ours: Places, theirs: Places) -> str:
    """How the shapes of two models' layers differ; "" if they do not. The number of tokens may differ."""
    layers = [{name for name in each if _LAYER.search(name)} for each in (ours, theirs)]
    if not layers[0] or not layers[1]:
        return "it has no layers that could be compared"
    if odd := sorted(layers[0] ^ layers[1]):
        who = "the parent lacks" if odd[0] in layers[0] else "it lacks"
        return f"other layers: {who} {odd[0][:80]} ({len(odd):,} tensors of layers differ)"
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name][1].shape, theirs[name][1].shape
        if a != b and (_LAYER.search(name) or a[1:] != b[1:]):
            return f"other shapes: {name[:80]} is {a}, and {b} in the parent"
    return ""


def _layer_matrices(where: Places) -> set[str]:
    return {name for name, (_, each) in where.items() if _is_layer_matrix(name, each)}


def _is_layer_matrix(name: str, entry: SafeTensor) -> bool:
    return len(entry.shape) == 2 and _LAYER.search(name) is not None


def _compare(
    name: str, ours: Places, theirs: Places, findings: Findings, sums: _Sums, own: str = ""
) -> bool | None:
    """Whether a tensor is equal in every bit; None for a constant one.

    own: its name in the child's file, if that is another one.
    Of types of two precisions, the values are compared as the rounder one holds them.
    """
    import torch

    if not ours[name][1].shape or not math.prod(ours[name][1].shape):
        return None
    kinds = (ours[name][1].dtype, theirs[name][1].dtype)
    is_equal = True
    for number, (a, b) in enumerate(
        zip(_chunks(*ours[name], own or name), _chunks(*theirs[name], name), strict=True)
    ):
        if number == 0:
            if not (a.is_floating_point() and b.is_floating_point()) or bool((b == b.flatten()[0]).all()):
                return None
            if _is_layer_matrix(name, theirs[name][1]):
                sums.add(a, b)
        if kinds[0] != kinds[1]:
            kind = a.dtype if _COARSE.get(kinds[0], 0) >= _COARSE.get(kinds[1], 0) else b.dtype
            a, b = a.to(kind), b.to(kind)
        if not torch.equal(a, b):
            is_equal = False
            break
    findings.n_tensors += 1
    findings.n_equal += is_equal
    return is_equal


def _chunks(path: Path, entry: SafeTensor, name: str) -> Iterator[torch.Tensor]:
    """Some rows of a tensor at a time."""
    from safetensors import safe_open

    n = max(1, _CHUNK // max(1, math.prod(entry.shape[1:])))
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        for start in range(0, entry.shape[0], n):
            yield part[start : start + n]


def _columns(path: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        columns: torch.Tensor = file.get_slice(name)[:, :_COLUMNS]
    return columns


def _corner(path: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        corner: torch.Tensor = file.get_slice(name)[:_SAMPLE, :_SAMPLE]
    return corner.float()


# --- quantized -------------------------------------------------------------------------------------


class _Steps:
    """Distances of a parent's weights from their quantized values, in steps of the grid."""

    def __init__(self) -> None:
        self.worst, self.n_within, self.n = 0.0, 0, 0

    def add(self, grid: QuantizedRows, parent: torch.Tensor) -> None:
        steps = grid.steps.expand(grid.values.shape)
        away = (grid.values - parent).abs() / steps
        away = away[steps.isfinite() & (steps > 0)]
        if away.numel():
            self.worst = max(self.worst, float(away.max()))
            self.n_within += int((away <= 1).sum())
            self.n += away.numel()

    def put(self, findings: Findings) -> None:
        if self.n:
            findings.worst_step, findings.within_step = self.worst, self.n_within / self.n


def is_quantized(folder: Path) -> bool:
    """Whether the config of a folder says that its weights are quantized."""
    return bool(read_config(folder).get("quantization_config"))


def compare_quantized(child: Path, parent: Path, findings: Findings) -> None:
    """Compare a folder or GGUF of quantized weights with whole ones, matrix by matrix."""
    sums, steps = _Sums(), _Steps()
    ggufs = sorted(child.glob("*.gguf"))
    why = _compare_gguf(ggufs[0], parent, findings, sums, steps) if ggufs else ""
    if not ggufs:
        why = _compare_folder(child, parent, findings, sums, steps)
    if why or not sums.n:
        findings.against.append(why or "it has no matrix that could be compared")
        return
    findings.agrees.insert(0, "shapes")
    steps.put(findings)
    sums.put(findings)


def _compare_folder(child: Path, parent: Path, findings: Findings, sums: _Sums, steps: _Steps) -> str:
    """Compare a folder of safetensors; returns how its shapes differ. Raises Unavailable."""
    from heredity.formats.packed import packing_of, read_grids

    ours, theirs = places(child), places(parent)
    config = read_config(child).get("quantization_config")
    how: dict[str, object] = config if isinstance(config, dict) else {}
    readers = read_grids(ours, how)
    matrices = _layer_matrices(theirs)
    odd = sorted((readers.keys() - theirs.keys()) | (matrices - readers.keys() - ours.keys()))
    if odd or readers:
        packing_of(how, ours)  # refuses packed weights that are not read here
    if odd:
        return f"other layers: {odd[0][:80]} is in one of the two"
    for name in findings.counted(readers):
        shape = theirs[name][1].shape
        is_written = _is_written(name, shape)
        grid = _read_grid(name, readers[name], math.prod(shape) if is_written else _CHUNK)
        if grid.values.shape[1] != shape[-1]:
            return (
                f"other shapes: {name[:80]} has {grid.values.shape[1]} inputs, and {shape[-1]} in the parent"
            )
        _add(grid, _rows(theirs, name, len(grid.values)), findings, sums, steps, is_written)
    for name in sorted((ours.keys() & theirs.keys()) - readers.keys()):
        if ours[name][1].shape == theirs[name][1].shape:
            _compare(name, ours, theirs, findings, sums)
    return ""


def _is_written(name: str, shape: Sequence[int]) -> bool:
    """Whether a quantized matrix is unpacked whole, to see if it lost a direction."""
    return WRITES.fullmatch(name) is not None and math.prod(shape) <= _WHOLE


def _read_grid(name: str, read: Reader, most: int) -> QuantizedRows:
    """The first rows of a packed matrix. Raises Damaged for tensors that do not fit each other."""
    try:
        return read(most)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, ArithmeticError) as error:
        raise Damaged(f"The matrix {name[:80]!r} does not read as packed: {str(error)[:200]}.") from None


def _compare_gguf(path: Path, parent: Path, findings: Findings, sums: _Sums, steps: _Steps) -> str:
    """Compare a GGUF; returns how its shapes differ."""
    from heredity.formats.packed import EXPERT, gguf_places, read_gguf_grid

    header, theirs, config = read_gguf(path), places(parent), read_config(parent)
    is_llama = header.text("general.architecture") == "llama"
    where = gguf_places(header, list(theirs))
    known = {each.name for each in where.values()}
    if odd := sorted(each.name for each in header.tensors if "blk." in each.name and each.name not in known):
        return f"other layers: the parent has no place for {odd[0][:80]}"
    if odd := sorted(_layer_matrices(theirs) - where.keys()):
        return f"other layers: it lacks {odd[0][:80]}"
    for name in findings.counted(where):
        tensor = where[name]
        shape, own = theirs[name][1].shape, list(tensor.shape)[::-1]
        if (expert := EXPERT.search(name)) and len(own) == 3:
            own = own[1:]  # all experts of a layer; the first one is compared
        if len(shape) != 2 or (expert and expert[1] != "0"):
            continue
        if own[1:] != shape[1:] or (_LAYER.search(name) and own != shape):
            return f"other shapes: {name[:80]} is {own}, and {shape} in the parent"
        is_turned = is_llama and (".q_proj." in name or ".k_proj." in name)
        is_written = _is_written(name, shape)
        grid = read_gguf_grid(path, tensor, math.prod(shape) if is_turned or is_written else _CHUNK)
        rows = _rows(theirs, name, len(grid.values))
        rows = _turned(name, rows, config) if is_turned else rows
        _add(grid, rows, findings, sums, steps, is_written)
    return ""


def _turned(name: str, rows: torch.Tensor, config: Mapping[str, object]) -> torch.Tensor:
    """Queries and keys in the order in which a GGUF of a Llama has them."""
    import torch

    from heredity.formats.gguf_weights import in_gguf_order

    key = "num_key_value_heads" if ".k_proj." in name else "num_attention_heads"
    n_heads = config.get(key) or config.get("num_attention_heads")
    if not isinstance(n_heads, int) or not n_heads or len(rows) % (2 * n_heads):
        raise Damaged(f"{name[:80]}: {len(rows)} rows are not those of {n_heads} heads.")
    return torch.from_numpy(in_gguf_order(rows.numpy(), n_heads))


def _add(
    grid: QuantizedRows, rows: torch.Tensor, findings: Findings, sums: _Sums, steps: _Steps, is_written: bool
) -> None:
    import torch

    n = min(len(rows), len(grid.values))
    values = grid.values[:n]
    findings.n_tensors += 1
    findings.n_equal += torch.equal(values, rows[:n])
    if is_written:
        findings.compare_writes(values, rows[:n])
    sums.add(values, rows[:n])
    steps.add(grid._replace(values=values, steps=grid.steps[:n] if grid.steps.ndim else grid.steps), rows[:n])


def _rows(where: Places, name: str, n: int) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(where[name][0], framework="pt") as file:
        rows: torch.Tensor = file.get_slice(name)[:n]
    return rows.float()


def read_config(folder: Path) -> dict[str, object]:
    """The config.json of a folder; {} without one."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    return config if isinstance(config, dict) else {}


# --- adapters --------------------------------------------------------------------------------------


def compare_adapter(child: Path, parent: Path, findings: Findings) -> None:
    """Check that an adapter fits its base. Replaced tensors and DoRA's magnitudes show the base, too.

    The matrices of plain LoRA hold nothing of the base: such an adapter is at most consistent.
    Raises Unavailable for a form that is not read.
    """
    from heredity.formats.peft import HEAD, embedding_of, read_adapter

    theirs = places(parent)
    is_tied = bool(read_config(parent).get("tie_word_embeddings", True)) and HEAD not in theirs
    try:
        adapter = read_adapter(child).fitted(
            theirs.keys(), is_tied, child, read_config(parent).get("model_type")
        )
    except Damaged as error:
        if error.code != "adapter-misfit":
            raise
        findings.against.append(f"other layers: {str(error).removeprefix(f'{child}: ').rstrip('.')}")
        return
    embedding, sums, lengths = embedding_of(theirs.keys()), _Sums(), _Sums()
    why = ""
    for module, low in adapter.low_rank.items():
        name = f"{module}.weight"
        why = why or _compare_update(name if name in theirs else embedding, low, theirs, findings, lengths)
    for name, tensor in adapter.whole.items():
        why = why or _compare_saved(name if name in theirs else embedding, tensor, theirs, findings, sums)
    if why:
        findings.against.append(why)
        return
    findings.agrees.insert(0, "shapes")
    lengths.put(findings, "magnitudes", _UNRELATED, _MAGNITUDES)
    sums.put(findings)


def _compare_update(name: str, low: LowRank, theirs: Places, findings: Findings, magnitudes: _Sums) -> str:
    """Compare an update with the matrix that it is added to; returns how the shapes differ."""
    import torch

    shape, own = theirs[name][1].shape, [low.b.shape[0], low.a.shape[1]]
    if shape != (own[::-1] if low.is_transposed else own):
        return f"other shapes: {name[:80]} is {shape} in the parent, and its adapter is for {own}"
    if WRITES.fullmatch(name) and not low.is_transposed:
        before = _columns(theirs[name][0], name).float()
        findings.compare_writes(before + low.scale * (low.b @ low.a[:, :_COLUMNS]), before)
    if low.magnitude is not None:
        updated = _rows(theirs, name, shape[0]) + low.delta()
        lengths = torch.linalg.norm(updated.T if low.is_transposed else updated, dim=1)
        # The lengths of any two models are alike in their mean.
        magnitudes.add(low.magnitude - low.magnitude.mean(), lengths - lengths.mean())
    return ""


def _compare_saved(name: str, tensor: torch.Tensor, theirs: Places, findings: Findings, sums: _Sums) -> str:
    """Compare a replaced tensor with that of the parent; returns how the shapes differ."""
    import torch

    shape, own = theirs[name][1].shape, list(tensor.shape)
    if own[1:] != shape[1:] or (own != shape and len(shape) != 2):
        return f"other shapes: {name[:80]} is {shape} in the parent, and {own} in the adapter"
    n = min(own[0], shape[0], max(1, _CHUNK // max(1, math.prod(shape[1:]))))
    rows = _rows(theirs, name, n)
    findings.n_tensors += 1
    findings.n_equal += torch.equal(tensor[:n].float(), rows)
    if len(shape) == 2:
        sums.add(tensor[:n].float(), rows)
    return ""
