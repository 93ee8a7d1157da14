"""What memory a training takes beside its weights: masters, gradients, moments, and what a step keeps.

Promises: masters, gradients and moments are counted; what a step keeps for its way back is reckoned from the
model's shape and the largest product of tokens.
Leaves to others: how much there is, and the refusal (engines/_memory.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from heredity.train.documents import Example
from heredity.train.network import CHUNK, Network
from heredity.train.optimizer import Kind
from heredity.train.steps import PRODUCT
from heredity.train.trainable import Everything, Lora

_WIDE = 4  # bytes of fp32


def needed(
    network: Network, trainable: Everything | Lora, optimizer: Kind, examples: Sequence[Example], batch: int
) -> dict[str, int]:
    """Bytes by part of a training's step, beside the weights that are loaded."""
    n_learned = _n_learned(network, trainable)
    n_moments = 1 if optimizer == "muon" else 2  # at the least: Muon leaves embedding and vectors to AdamW
    return {
        "masters": _WIDE * n_learned,
        "gradients": _WIDE * n_learned,
        "optimizer": n_moments * _WIDE * n_learned,
        f"a step of {largest_product(examples, batch):,} tokens": _kept(network, examples, batch),
    }


def largest_product(examples: Sequence[Example], batch: int) -> int:
    """The most tokens that any step multiplies at once: full products, or an example longer than one."""
    longest = sorted((each.n_tokens for each in examples), reverse=True)
    return max(longest[0], min(PRODUCT, sum(longest[:batch])))


def _n_learned(network: Network, trainable: Everything | Lora) -> int:
    if isinstance(trainable, Everything):
        return sum(each.numel() for each in network.model.parameters())
    found = [
        module
        for name, module in network.model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in trainable.targets
    ]
    return sum(trainable.rank * (each.in_features + each.out_features) for each in found)


def _kept(network: Network, examples: Sequence[Example], batch: int) -> int:
    """A layer keeps, a token, about ten vectors and four of the MLP's in what is multiplied in, and two norms
    in fp32; the head keeps one part's logits and their gradient in fp32."""
    config = getattr(network.model.config, "text_config", None) or network.model.config
    size = network.head.element_size()
    layer = size * (10 * config.hidden_size + 4 * config.intermediate_size) + 2 * _WIDE * config.hidden_size
    n_tokens = largest_product(examples, batch)
    logits = 2 * _WIDE * min(CHUNK, n_tokens) * len(network.head)
    return int(config.num_hidden_layers * layer * n_tokens) + logits
