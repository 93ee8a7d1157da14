"""What memory a training takes beside its weights: masters, gradients, moments, and what a step keeps.

Promises: masters, gradients and moments are counted, and the largest product of tokens that a step makes.
Leaves to others: what a model keeps of it (planning/memory.py), how much there is, and the refusal
(engines/_memory.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from heredity.train.data.batching import PRODUCT
from heredity.train.data.documents import TokenizedExample
from heredity.train.models.causal_lm import CausalLM
from heredity.train.models.lora import Everything, LowRankAdapters
from heredity.train.models.shapes import TransformerShape
from heredity.train.optimizer import Kind
from heredity.train.planning import memory
from heredity.train.planning.cost_models import WIDE
from heredity.train.planning.flops import Work


def needed(
    network: CausalLM,
    trainable: Everything | LowRankAdapters,
    optimizer: Kind,
    examples: Sequence[TokenizedExample],
    batch: int,
) -> dict[str, int]:
    """Bytes by part of a training's step, beside the weights that are loaded."""
    n_learned = _n_learned(network, trainable)
    n_moments = 1 if optimizer == "muon" else 2  # at the least: Muon leaves embedding and vectors to AdamW
    return {
        "masters": WIDE * n_learned,
        "gradients": WIDE * n_learned,
        "optimizer": n_moments * WIDE * n_learned,
        f"a step of {largest_product(examples, batch):,} tokens": _kept(network, examples, batch),
    }


def largest_product(examples: Sequence[TokenizedExample], batch: int) -> int:
    """The most tokens that any step multiplies at once: full products, or an example longer than one."""
    longest = sorted((each.n_tokens for each in examples), reverse=True)
    return max(longest[0], min(PRODUCT, sum(longest[:batch])))


def _n_learned(network: CausalLM, trainable: Everything | LowRankAdapters) -> int:
    if isinstance(trainable, Everything):
        return sum(each.numel() for each in network.model.parameters())
    found = [
        module
        for name, module in network.model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in trainable.targets
    ]
    return sum(trainable.rank * (each.in_features + each.out_features) for each in found)


def _kept(network: CausalLM, examples: Sequence[TokenizedExample], batch: int) -> int:
    """What a forward keeps of the largest product, and a part of its logits."""
    n_tokens = largest_product(examples, batch)
    return n_tokens * memory.kept(_work(network)) + memory.logits(_work(network), n_tokens)


def _work(network: CausalLM) -> Work:
    config = getattr(network.model.config, "text_config", None) or network.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = TransformerShape(
        config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
        head, config.intermediate_size, config.max_position_embeddings, len(network.head),
    )  # fmt: skip
    is_on_cpu = network.head.device.type == "cpu"
    kind, size = config.model_type, network.head.element_size()
    return Work(shape, 0, 1, architecture=kind, bytes=size, is_on_cpu=is_on_cpu)
