"""A forecast of a pre-training: parameters and bytes of a recipe's shape, the best layout, steps and time.

A unit is what a workload counts: a token of text, or an image-caption pair. The best layout fits and has the
shortest step; among equals, the fewest shards, which send the least. The stated utilization (MFU) is of the
matmuls, with the time that they wait for communication. Recomputed layers come on top. A plan is of one clean
run: LEFT_OUT names what it does not count.

On this machine's CPU, matmuls run at the measured limit of their shapes. Norms, gates, rotations, softmax and
sums are bound by memory: they pass a number of times over activations and logits. Muon adds matmuls per step.

Promises: parameters and activation bytes equal those of transformers' model exactly; tests hold them equal. A
forecast is a pure function of its arguments. A run that fits nowhere is refused, with what would hold it.
Leaves to others: measuring (core/host.py), FLOPs (rehearsal.py), the allocator and libraries (its reserve).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from heredity.core.errors import OutOfMemory, Unavailable, UnknownName, UsageError, how_to_install
from heredity.core.records import Record
from heredity.train.models.architectures import bert, modernbert
from heredity.train.models.shapes import (
    FP32_BYTES,
    PRETRAIN_MICROBATCH_TOKENS,
    DecoderActivations,
    DualShape,
    TransformerShape,
    flops_per_token,
    matmul_limit,
)


def training_memory(
    work: Workload, n: int, shards: int = 1, recompute: int = 0, n_microbatches: int = 2
) -> dict[str, int]:
    """Bytes by part in the largest phase of a step, with microbatches of `n` tokens or pairs.

    recompute: every n-th layer keeps its input only; 0: none. n_microbatches: per step; from the second one
    on, the gradients of the first are held.
    """
    step = _StepMemory(work, cost_model_of(work), n, shards, recompute, n_microbatches > 1)
    return max(step.phases(), key=lambda parts: sum(parts.values()))


@dataclass(frozen=True)
class _StepMemory:
    """A step on one device. is_later: gradients of an earlier microbatch are held."""

    work: Workload
    made: CostModel
    n: int
    shards: int
    recompute: int
    is_later: bool

    def phases(self) -> Iterator[dict[str, int]]:
        """Bytes by part in each phase that may be the largest."""
        yield (
            self._lasting(n_gathered=0)
            | {
                "gradients": self.work.bytes * self.made.head + self._gradients(0),
                "activations": self.n * self.made.left(0, self.recompute),
                "logits": self.made.logits(self.n),
            }
        )
        yield from self._back()
        made, size = self.made, self.work.bytes
        tower = made.towers[-1]
        whole = made.root + tower.each  # its gradients are being reduced
        flying = (size + FP32_BYTES) * whole if self.shards > 1 else size * made.loose
        yield (
            self._lasting(n_gathered=2)
            | {
                "gradients": self._gradients(made.n_parameters) + flying,
                "activations": self.n * (tower.most + tower.back + tower.entry * bool(self.recompute)),
                "logits": 0,
            }
        )

    def _back(self) -> Iterator[dict[str, int]]:
        """In the backward pass of a tower's last layer, which is whole even if recomputed."""
        n_done, made = 0, self.made
        for place, tower in enumerate(made.towers):
            full = tower.back - tower.end + (tower.most if self.recompute else 0)
            waiting = self.work.bytes * (made.loose if place else made.head)
            yield self._lasting(n_gathered=2) | {
                "gradients": waiting + self._gradients(n_done),
                "activations": self.n * (made.left(place, self.recompute) + full),
                "logits": 0,
            }
            n_done += tower.parameters

    def _gradients(self, n_done: int) -> int:
        """In fp32, of `n_done` parameters; of all from the second microbatch on."""
        return FP32_BYTES * _shard(self.made.n_parameters if self.is_later else n_done, self.shards)

    def _lasting(self, n_gathered: int) -> dict[str, int]:
        """Bytes that are held throughout. Of sharded weights the root and `n_gathered` layers are whole."""
        made, work = self.made, self.work
        layers = min(n_gathered, work.shape.layers) * made.towers[0].each
        return {
            "weights": work.bytes * (made.n_parameters if self.shards == 1 else made.root + layers),
            "masters": FP32_BYTES * _shard(made.n_parameters, self.shards),
            "optimizer": _shard(optimizer_memory(work), self.shards),
        }


class RunCost(NamedTuple):
    """The parameters of a model, and the FLOPs of its training."""

    n_parameters: int
    flops: float


def cost_of_run(settings: Mapping[str, Any], n_tokens: int) -> RunCost | None:
    """The cost of a run on text by the settings of its recipe; None if these describe no transformer."""
    if not set(TransformerShape.__struct_fields__) <= set(settings):
        return None
    named = {name: settings[name] for name in TransformerShape.__struct_fields__}
    shape = msgspec.convert(named, TransformerShape)
    work = Workload(shape, n_tokens, 1, architecture=settings["architecture"])
    return RunCost(n_parameters(work), n_tokens * flops_per_token(shape))


def n_parameters(work: Workload) -> int:
    """All parameters."""
    return cost_model_of(work).n_parameters


def optimizer_memory(work: Workload) -> int:
    """Moments in fp32: two for AdamW, one for the matrices of Muon."""
    made = cost_model_of(work)
    return FP32_BYTES * (2 * made.n_parameters - (made.matrices if work.optimizer == "muon" else 0))


def _shard(n: int, shards: int) -> int:
    return -(-n // shards)


class Workload(Record, frozen=True):
    """The work of a run, counted in units: tokens, or image-caption pairs.

    `bytes`: of a number in matmuls, 2 for bfloat16.
    """

    shape: TransformerShape  # with a picture: of both towers, and `context` is of captions
    tokens: int  # units to read
    batch: int  # units per step
    optimizer: Literal["muon", "adamw"] = "muon"
    architecture: str = "qwen3"
    bytes: int = 2
    is_on_cpu: bool = False  # there, norms keep less for the backward pass (kernels.py)
    head_share: float = 1.0  # share of tokens on which the head runs
    picture: tuple[int, int] | None = None  # sides of image and patch, in pixels
    n_evaluated: int = 0  # units of all evaluations

    @property
    def unit(self) -> Literal["token", "pair"]:
        """The unit of counts."""
        return "token" if self.picture is None else "pair"

    @property
    def chunk(self) -> int:
        """Units that are never split between devices: a context, or one pair."""
        return self.shape.context if self.picture is None else 1

    @property
    def is_whole(self) -> bool:
        """Whether a device has its share of a step in one microbatch: pairs are compared with all others."""
        return self.picture is not None

    @property
    def towers(self) -> DualShape:
        """The shape with its image."""
        assert self.picture is not None
        side, patch = self.picture
        return DualShape(**msgspec.structs.asdict(self.shape), side=side, patch=patch)

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalized."""
        return self.architecture == "qwen3"

    @property
    def n_steps(self) -> int:
        """Optimizer steps."""
        return max(1, -(-self.tokens // self.batch))


@dataclass(frozen=True)
class TowerCosts:
    """A stack of layers. Bytes are per unit."""

    layers: int
    parameters: int  # of all layers
    each: int  # of the largest layer
    kept: int  # activations of all layers
    begin: int  # activations before the layers
    end: int  # activations after them, released before the backward pass of the last layer
    most: int  # the largest activations of one layer
    entry: int  # a layer's input: all that it keeps if recomputed
    back: int  # what the backward pass of a layer takes in addition

    def layers_kept(self, recompute: int) -> int:
        """Bytes that the layers keep if every `recompute`-th one keeps its input only; 0: none does."""
        again = self.layers // recompute if recompute else 0
        return again * self.entry + -(-self.kept * (self.layers - again) // self.layers)


@dataclass(frozen=True)
class CostModel:
    """The costs of a model of one architecture and shape."""

    parameters: dict[str, int]  # by part
    matrices: int  # parameters that Muon updates
    towers: tuple[TowerCosts, ...]  # in the order of the backward pass
    head: int  # parameters whose gradient is computed with the loss
    loose: int  # parameters outside layers whose gradients are held in addition to the masters'
    logits: Callable[[int], int]  # units at once -> bytes
    period: int = 1  # layers after which their kinds repeat

    @property
    def n_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def n_layers(self) -> int:
        return sum(tower.layers for tower in self.towers)

    @property
    def in_layers(self) -> int:
        """Parameters of all layers."""
        return sum(tower.parameters for tower in self.towers)

    @property
    def root(self) -> int:
        """Parameters outside the layers."""
        return self.n_parameters - self.in_layers

    def left(self, n: int, recompute: int) -> int:
        """Activation bytes per unit that are held once `n` towers have done their backward pass.

        recompute: every `recompute`-th layer keeps its input only; 0: none.
        """
        return sum(tower.begin + tower.end + tower.layers_kept(recompute) for tower in self.towers[n:])


def norm_statistics(work: Workload) -> int:
    """Bytes of a row's mean and deviation that a norm keeps."""
    return 2 * (work.bytes if work.is_on_cpu else FP32_BYTES)


# --- decoders ---


def _decoder_costs(work: Workload) -> CostModel:
    """The costs of a decoder."""
    shape, kept = work.shape, activations(work)
    table = shape.vocabulary * shape.width
    tower = TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * layer_parameters(shape, work.has_qk_norm),
        each=layer_parameters(shape, work.has_qk_norm),
        kept=shape.layers * kept.per_layer,
        begin=kept.root,
        end=0,
        most=kept.per_layer,
        entry=work.bytes * shape.width,
        back=work.bytes * (3 * shape.wide + 2 * shape.width),
    )
    return CostModel(
        parameters=parameters(shape, work.has_qk_norm),
        matrices=shape.layers * (_attention(shape) + _gated_feed_forward(shape)),
        towers=(tower,),
        head=table,
        loose=table * (2 if shape.is_tied else 3) + shape.width,
        logits=kept.logits,
    )


def parameters(shape: TransformerShape, has_qk_norm: bool) -> dict[str, int]:
    """Parameters by part. A head that is tied to the embedding has 0."""
    table = shape.vocabulary * shape.width
    norms = shape.layers * (2 * shape.width + 2 * shape.head * has_qk_norm) + shape.width
    return {
        "embedding": table,
        "attention": shape.layers * _attention(shape),
        "feed-forward": shape.layers * _gated_feed_forward(shape),
        "norms": norms,
        "head": 0 if shape.is_tied else table,
    }


def layer_parameters(shape: TransformerShape, has_qk_norm: bool) -> int:
    """Parameters of one layer."""
    return _attention(shape) + _gated_feed_forward(shape) + 2 * shape.width + 2 * shape.head * has_qk_norm


def _attention(shape: TransformerShape) -> int:
    return shape.width * shape.head * 2 * (shape.heads + shape.kv_heads)


def _gated_feed_forward(shape: TransformerShape) -> int:
    return 3 * shape.width * shape.wide


def activations(work: Workload) -> DecoderActivations:
    """The activations of a forward pass."""
    return DecoderActivations(work.shape, work.bytes, work.is_on_cpu, work.has_qk_norm)


# --- encoders of text: the head runs on masked tokens only ---


def _bert_costs(work: Workload) -> CostModel:
    """Of a BERT: every layer attends to the whole chunk, and every matmul has a bias."""
    shape, size = work.shape, work.bytes
    width, table = shape.width, shape.vocabulary * shape.width
    attention, wide = 4 * width * (width + 1), 2 * width * shape.wide + shape.wide + width
    each = attention + wide + 4 * width
    places, norm = (shape.context + bert.TYPES) * width, norm_statistics(work)
    # A layer's input; queries, keys and values; the attention result twice; inputs of two norms, and the
    # output of the first one; two tensors of the feed-forward part.
    layer = size * (9 * width + 2 * shape.wide) + FP32_BYTES * shape.heads + 2 * norm
    gap = 4 * size * width + norm + 8  # of a masked token: activations of the head, and its gradient
    tower = TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * each,
        each=each,
        kept=shape.layers * layer,
        # The input of a norm; ids of token, position and type.
        begin=size * width + norm + 3 * 8 + math.ceil(work.head_share * gap),
        end=0,
        most=layer,
        entry=size * width,
        back=size * (2 * shape.wide + 2 * width),
    )
    return CostModel(
        parameters={
            "embedding": table + places,
            "attention": shape.layers * attention,
            "feed-forward": shape.layers * wide,
            "norms": 4 * width * (shape.layers + 1),  # two a layer; of the embedding, of the head
            "head": width * (width + 1) + shape.vocabulary,
        },
        matrices=shape.layers * (4 * width**2 + 2 * width * shape.wide) + width**2,
        towers=(tower,),
        head=table + shape.vocabulary,
        loose=2 * table + places + width**2 + shape.vocabulary,
        logits=lambda n: activations(work).logits(math.ceil(work.head_share * n)),
    )


_SEEN = modernbert.WINDOW // 2  # per side


def _modernbert_costs(work: Workload) -> CostModel:
    """The costs of a ModernBERT."""
    shape, size = work.shape, work.bytes
    table, attention, wide = shape.vocabulary * shape.width, 4 * shape.width**2, 3 * shape.width * shape.wide
    each = attention + wide + 2 * shape.width
    mask = size * shape.context if shape.context > _SEEN + 1 else 0
    layer, first_norm = _modernbert_kept(work), size * shape.width + norm_statistics(work)
    n_windows = shape.layers - math.ceil(shape.layers / modernbert.EVERY)
    tower = TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * each - shape.width,
        each=each,
        kept=shape.layers * layer - first_norm + n_windows * mask,
        begin=_modernbert_kept_by_root(work),
        end=0,
        most=layer + mask * (n_windows > 0),
        entry=size * shape.width,
        back=size * (3 * shape.wide + 2 * shape.width),
    )
    norms = (2 * shape.layers - 1) * shape.width + 3 * shape.width  # embedding, last, head
    return CostModel(
        parameters={
            "embedding": table,
            "attention": shape.layers * attention,
            "feed-forward": shape.layers * wide,
            "norms": norms,
            "head": shape.width**2,
        },
        matrices=shape.layers * (attention + wide) + shape.width**2,
        towers=(tower,),
        head=table,
        loose=2 * table + shape.width**2,
        logits=lambda n: activations(work).logits(math.ceil(work.head_share * n)),
        period=modernbert.EVERY,
    )


def _modernbert_kept(work: Workload) -> int:
    """Activation bytes per token and layer.

    Inputs and outputs of two norms; queries and keys before and after rotation; values; the attention result
    twice; four tensors of the feed-forward part.
    """
    shape = work.shape
    return (
        work.bytes * (11 * shape.width + 4 * shape.wide)
        + FP32_BYTES * shape.heads
        + 2 * norm_statistics(work)
    )


def _modernbert_kept_by_root(work: Workload) -> int:
    """Activation bytes per token outside the layers.

    Inputs of two norms, rotary positions of both kinds, the token id; for masked tokens also what the head
    keeps, and its gradient.
    """
    shape, size = work.shape, work.bytes
    n_kinds = 2 if shape.layers > 1 else 1
    token = 2 * (size * shape.width + norm_statistics(work)) + n_kinds * 2 * size * shape.head + 8
    gap = 3 * size * shape.width + norm_statistics(work) + 8 + size * shape.width
    return token + math.ceil(work.head_share * gap)


# --- dual encoders ---
# A unit is a pair: all positions of its image and of its caption. The backward pass goes through the text
# tower first, while all activations of the image tower are held. Every image of a step is compared with every
# caption. If devices share a step, each compares its images with all captions, and its captions with all
# images.


_SCORES = 5  # fp32 copies of a score: itself, masked, two log-softmaxes, a gradient
_ALONE = 2  # further bytes per score: two masks


@dataclass(frozen=True)
class EndCosts:
    """The costs that differ: parameters outside the layers, by part.

    begin: activation bytes of an image before the layers, without its pixels.
    ends: activation bytes of a caption and an image after the layers, without last norm and embedding.
    places: positions of an image.
    active: tensors that the activation of the feed-forward part keeps.
    """

    embedding: int
    norms: int
    head: int
    matrices: int  # of the head, for Muon
    begin: int
    ends: tuple[int, int]
    places: int
    active: int


def two_tower_costs(work: Workload, around: EndCosts) -> CostModel:
    """The costs of a dual encoder."""
    shape = work.towers
    attention, wide = (
        4 * shape.width * (shape.width + 1),
        2 * shape.width * shape.wide + shape.wide + shape.width,
    )
    each = attention + wide + 4 * shape.width
    n = 2 * shape.layers
    return CostModel(
        parameters={
            "embedding": around.embedding + shape.vocabulary * shape.width,
            "attention": n * attention,
            "feed-forward": n * wide,
            "norms": n * 4 * shape.width + around.norms,
            "head": around.head,
        },
        matrices=n * (4 * shape.width**2 + 2 * shape.width * shape.wide) + around.matrices,
        towers=(
            _tower(work, around, each, shape.context, 8 * shape.context, around.ends[0]),
            _tower(work, around, each, around.places, _points(work) + around.begin, around.ends[1]),
        ),
        head=0,
        loose=shape.vocabulary * shape.width,
        logits=lambda pairs: pairs * work.batch * (FP32_BYTES * _SCORES + _ALONE),
    )


def _tower(work: Workload, around: EndCosts, each: int, places: int, begin: int, end: int) -> TowerCosts:
    """The costs of one tower.

    Layers keep inputs and outputs of two norms, queries, keys, values and the attention result. After them
    stay the input of the last norm, and the embedding with its norm.
    """
    shape, size = work.towers, work.bytes
    wide = (around.active + 1) * shape.wide
    layer = places * (size * (8 * shape.width + wide) + FP32_BYTES * shape.heads + 2 * norm_statistics(work))
    embedding = FP32_BYTES * (shape.width + 2) + FP32_BYTES * (3 * shape.width // 2)
    return TowerCosts(
        layers=shape.layers,
        parameters=shape.layers * each,
        each=each,
        kept=shape.layers * layer,
        begin=begin,
        end=end + places * size * shape.width + embedding,
        most=layer,
        entry=places * size * shape.width,
        back=places * size * (2 * shape.wide + 2 * shape.width),
    )


def _points(work: Workload) -> int:
    """Bytes of an image, as input and in the matmul's dtype."""
    given = 3 * work.towers.side**2
    return given * (FP32_BYTES if work.bytes == FP32_BYTES else FP32_BYTES + work.bytes)


_EVEN = 2  # columns that x * sigmoid(1.702 x) keeps


def _clip_costs(work: Workload) -> CostModel:
    """Of a CLIP: the class position represents an image, and the end token a caption."""
    shape, size = work.towers, work.bytes
    width, places = shape.width, shape.patches + 1
    first_norm = places * (size * width + norm_statistics(work))  # before the layers of images
    caption = shape.context * norm_statistics(work) + 16 + size * width  # and where its end is
    return two_tower_costs(
        work,
        EndCosts(
            embedding=width * (shape.context + places + 1 + 3 * shape.patch**2),
            norms=6 * width,
            head=2 * width**2 + 1,
            matrices=2 * width**2,
            begin=first_norm,
            ends=(caption, size * width + norm_statistics(work)),
            places=places,
            active=_EVEN,
        ),
    )


def _siglip_costs(work: Workload) -> CostModel:
    """Of a SigLIP: a learned probe attends to an image, and the last position of a caption to all of it."""
    shape, size = work.towers, work.bytes
    width, places, wide = shape.width, shape.patches, shape.wide
    asking = 4 * width * (width + 1) + 2 * width * wide + wide + width
    captions = shape.context * (size * width + norm_statistics(work))  # all that the last norm gives is held
    images = places * (
        norm_statistics(work) + 3 * size * width + size * shape.heads
    )  # and keys and values of it
    probe = size * (5 * width + 2 * wide) + norm_statistics(work)
    return two_tower_costs(
        work,
        EndCosts(
            embedding=width * (shape.context + places + 3 * shape.patch**2 + 1),
            norms=4 * width,
            head=width * (width + 1) + width + asking + 2 * width + 2,
            matrices=width**2 + 4 * width**2 + 2 * width * wide,
            begin=0,
            ends=(captions, images + probe),
            places=places,
            active=1,
        ),
    )


COSTS = {
    "bert": _bert_costs,
    "clip": _clip_costs,
    "llama": _decoder_costs,
    "modernbert": _modernbert_costs,
    "qwen3": _decoder_costs,
    "siglip": _siglip_costs,
}


@lru_cache(maxsize=64)
def cost_model_of(work: Workload) -> CostModel:
    """The cost model of a workload."""
    return COSTS[work.architecture](work)


CPU = "cpu"


class Gpu(Record, frozen=True):
    """A device. flops: FLOP/s of dense bfloat16 matmuls with fp32 sums; memory: bytes."""

    title: str
    flops: float
    memory: float
    source: str
    rate: float | None = None  # bytes/s of a pass over memory, if measured


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 989.4e12, 80e9, "data sheet, half of the 1,979 TFLOPS with sparsity"),
    "h200": Gpu("NVIDIA H200 SXM", 989.4e12, 141e9, "data sheet, half of the 1,979 TFLOPS with sparsity"),
    "b200": Gpu("NVIDIA B200", 2250e12, 180e9, "HGX and DGX B200 data sheets, per device, half of sparse"),
    "a100-80": Gpu("NVIDIA A100 SXM 80 GB", 312e12, 80e9, "data sheet"),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 165.2e12, 24e9, "Ada GPU architecture whitepaper, appendix A"),
}


def find_gpu(name: str, work: Workload) -> Gpu:
    """A device of GPUS, or "cpu": this machine, measured with torch. Raises UnknownName."""
    if name == CPU:
        from heredity.core import host

        try:
            import torch
        except ImportError:
            raise Unavailable(f"Measuring this machine needs torch. {how_to_install('torch')}") from None
        dtype = torch.bfloat16 if work.bytes == 2 else torch.float32
        rate = host.memory_bandwidth(PRETRAIN_MICROBATCH_TOKENS, work.shape.width, dtype)
        return this_processor(matmul_limit(work.shape, dtype), host.available_memory(), rate)
    if name not in GPUS:
        raise UnknownName("gpu", name, [*GPUS, CPU], "heredity plan --help")
    return GPUS[name]


def this_processor(flops: float, memory: int | None, rate: float | None = None) -> Gpu:
    """This machine's processor."""
    source = "matrix products of the model's own shapes, measured now; free memory as the system tells it"
    room = float("inf") if memory is None else float(memory)
    return Gpu("this machine's processor", flops, room, source, rate)


class Layout(Record, frozen=True):
    """`shards` devices share one copy of masters, gradients and moments; there are `replicas` copies."""

    kind: Literal["none", "fsdp", "hsdp"]
    shards: int
    replicas: int


def layouts(n: int) -> Iterator[Layout]:
    """All layouts of `n` devices."""
    yield Layout("none", 1, n)
    for shards in range(2, n):
        if n % shards == 0:
            yield Layout("hsdp", shards, n // shards)
    if n > 1:
        yield Layout("fsdp", n, 1)


MEMORY_PASSES = 22.0  # over the activations, fitted to runs of 3M to 150M parameters (docs/results/plans.md)
STEP_TO_FORWARD = 3  # a training step costs three forward passes, an evaluation one
_MUON_FLOPS = 25.0  # FLOPs of a Muon step per parameter and width: five rounds of three matmuls


def cpu_seconds(work: Workload, flops: float, limit: float, rate: float) -> float:
    """Seconds of one unit, forward and backward.

    flops: of the unit. limit: FLOP/s of matmuls. rate: bytes/s of a pass over memory (core/host.py).
    """
    logits = work.bytes * work.shape.vocabulary * work.head_share if work.picture is None else 0.0
    if work.optimizer == "muon":
        flops += _MUON_FLOPS * work.shape.width * cost_model_of(work).matrices / work.batch
    return flops / limit + MEMORY_PASSES * (cost_model_of(work).left(0, 0) + logits) / rate


RECOMPUTE = (0, 2, 1)  # every n-th layer: none, every second one (selective), all
GB = 1e9  # as devices are sold
LEFT_OUT = "failures, restarts, checkpoints, loading, start-up and trial runs"
MFU = 0.4  # Llama 3 (2407.21783, table 4): 0.38 to 0.43 on 8,192 to 16,384 H100


@dataclass(frozen=True)
class Assumptions:
    """The assumptions of a forecast. Raises UsageError for impossible values."""

    mfu: float | None = None  # share of the peak that matmuls reach; None: MFU, or as measured
    reserve: float = 0.1  # of a device's memory, for libraries and fragmentation

    def __post_init__(self) -> None:
        mfu = MFU if self.mfu is None else self.mfu
        if not 0 < mfu <= 1 or not 0 <= self.reserve < 1:
            raise UsageError(
                f"mfu must be above 0 and at most 1 ({mfu:g}), and reserve at least 0 and below 1 "
                f"({self.reserve:g}).",
                code="bad-setting",
            )


class LayoutForecast(Record, frozen=True):
    """One layout. Seconds are per step, bytes per device."""

    layout: Layout
    recompute: int  # activation checkpointing: every n-th layer is recomputed in the backward pass; 0: none
    microbatch: int  # tokens or pairs of a microbatch
    n_microbatches: int  # microbatches per device and step
    memory: dict[str, int]
    seconds: float

    @property
    def needed(self) -> int:
        return sum(self.memory.values())


class Forecast(Record, frozen=True):
    """A forecast. `ways` has the best layout of each kind that fits, and `best` is one of them.

    If `unit` is "pair", fields that name tokens count pairs.
    """

    work: Workload
    unit: Literal["token", "pair"]
    gpu: Gpu
    n_gpus: int
    mfu: float
    is_measured: bool  # whether mfu was measured on this machine, not stated
    reserve: float
    parameters: dict[str, int]
    flops_a_token: dict[str, float]
    flops: float
    best: LayoutForecast
    ways: list[LayoutForecast]
    n_steps: int
    seconds: float
    tokens_a_second: float
    reached_mfu: float  # after recomputation and evaluations
    gpu_hours: float


LAYERS, SCORES, AROUND = "layers", "attention scores", "embedding and head"  # parts of the FLOPs


def forecast(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions | None = None
) -> Forecast:
    """Forecast a run on `n_gpus` devices. flops: of a unit, by part. Raises UsageError, OutOfMemory."""
    terms = terms or Assumptions()
    fitting = list(fitting_layouts(work, flops, gpu, n_gpus, terms))
    if not fitting:
        raise OutOfMemory(_out_of_memory_message(work, flops, gpu, n_gpus, terms))
    by_kind: dict[str, LayoutForecast] = {}
    for way in sorted(fitting, key=_preference):
        by_kind.setdefault(way.layout.kind, way)
    ways = list(by_kind.values())
    best = ways[0]
    seconds = best.seconds * (work.n_steps + work.n_evaluated / STEP_TO_FORWARD / work.batch)
    total = sum(flops.values()) * work.tokens
    return Forecast(
        work=work,
        unit=work.unit,
        gpu=gpu,
        n_gpus=n_gpus,
        mfu=_expected_mfu(work, flops, gpu, terms),
        is_measured=_is_measured(gpu, terms),
        reserve=terms.reserve,
        parameters=cost_model_of(work).parameters,
        flops_a_token=dict(flops),
        flops=total,
        best=best,
        ways=ways,
        n_steps=work.n_steps,
        seconds=seconds,
        tokens_a_second=work.tokens / seconds,
        reached_mfu=total / (seconds * n_gpus * gpu.flops),
        gpu_hours=n_gpus * seconds / 3600,
    )


def fitting_layouts(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions
) -> Iterator[LayoutForecast]:
    """All layouts that fit. Raises UsageError if a step has fewer chunks than there are devices."""
    room = (1 - terms.reserve) * gpu.memory
    return (way for way in _layout_forecasts(work, flops, gpu, n_gpus, terms) if way.needed <= room)


def _layout_forecasts(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions
) -> Iterator[LayoutForecast]:
    each = chunks_per_device(work, n_gpus)
    once = each * work.chunk / (_expected_mfu(work, flops, gpu, terms) * gpu.flops)
    at_once = each if work.is_whole else min(each, max(1, PRETRAIN_MICROBATCH_TOKENS // work.chunk))
    n_microbatches, microbatch = -(-each // at_once), at_once * work.chunk
    for layout in layouts(n_gpus):
        for recompute in RECOMPUTE:
            again = recomputed_flops(work, flops, recompute)
            memory = training_memory(work, microbatch, layout.shards, recompute, n_microbatches)
            yield LayoutForecast(
                layout, recompute, microbatch, n_microbatches, memory, once * (sum(flops.values()) + again)
            )


def recomputed_flops(work: Workload, flops: Mapping[str, float], recompute: int) -> float:
    """Additional FLOPs of a unit if every `recompute`-th layer runs forward once more; 0: none."""
    if not recompute:
        return 0.0
    towers = cost_model_of(work).towers
    share = sum(tower.layers // recompute for tower in towers) / sum(tower.layers for tower in towers)
    return share * (flops[LAYERS] + flops[SCORES]) / STEP_TO_FORWARD


def _expected_mfu(work: Workload, flops: Mapping[str, float], gpu: Gpu, terms: Assumptions) -> float:
    """The stated utilization, or the one of a machine whose memory bandwidth was measured."""
    if not _is_measured(gpu, terms):
        return terms.mfu or MFU
    assert gpu.rate is not None
    total = sum(flops.values())
    return total / (gpu.flops * cpu_seconds(work, total, gpu.flops, gpu.rate))


def _is_measured(gpu: Gpu, terms: Assumptions) -> bool:
    return gpu.rate is not None and terms.mfu is None


def chunks_per_device(work: Workload, n_gpus: int) -> int:
    """Contexts or pairs per device and step. Raises UsageError if there are too few."""
    if n_gpus < 1:
        raise UsageError(f"A plan needs at least one device, not {n_gpus}.", code="bad-setting")
    chunks = max(1, work.batch // work.chunk)
    if chunks < n_gpus:
        has = (
            f"has {chunks:,} contexts of {work.chunk:,}, too few" if work.unit == "token" else "is too small"
        )
        raise UsageError(
            f"A step of {work.batch:,} {work.unit}s {has} for {n_gpus:,} devices. "
            f"Take at most --gpus {chunks}, or a batch of {n_gpus * work.chunk:,}."
        )
    return math.ceil(chunks / n_gpus)


def _preference(way: LayoutForecast) -> tuple[float, int, int]:
    return way.seconds, way.layout.shards, way.needed


def _out_of_memory_message(
    work: Workload, flops: Mapping[str, float], gpu: Gpu, n_gpus: int, terms: Assumptions
) -> str:
    def fits(other: Gpu, n: int) -> bool:
        return any(fitting_layouts(work, flops, other, n, terms))

    least = min(_layout_forecasts(work, flops, gpu, n_gpus, terms), key=lambda way: way.needed)
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in least.memory.items())
    room = (1 - terms.reserve) * gpu.memory / GB
    alternatives, n = [], 2 * n_gpus
    while gpu in GPUS.values() and n <= work.batch // work.chunk:
        if fits(gpu, n):
            alternatives.append(f"{n:,} of these")
            break
        n *= 2
    larger = (other for other in GPUS.values() if other.memory > gpu.memory)
    alternatives += [f"{n_gpus:,} of {each.title}" for each in larger if fits(each, n_gpus)]
    advice = "Lower size, context or batch" if work.unit == "token" else "Lower size, batch or picture"
    if alternatives:
        advice = f"It would fit on {', or '.join(alternatives)}. Or: {advice.lower()}"
    return (
        f"The run needs at least {least.needed / GB:.1f} GB on each device ({parts}), and "
        f"{room:.1f} GB of {gpu.title} may be used. {advice}."
    )
