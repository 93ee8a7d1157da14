"""Steps that learn from what the student itself writes (on-policy): a function of its weights, seed and step.

Promises: a training that goes on at step n writes what it would have written, since answers are drawn from
seed and step alone; prompts come in the order of Steps.
Leaves to others: scoring what was written (objectives/distill.py).

Source: Agarwal et al. 2023 (GKD, 2306.13649), with every answer the student's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heredity.core.errors import UsageError
from heredity.engines.chat.documents import Document
from heredity.train.data.batching import BatchSampler, PackedBatch
from heredity.train.data.chat import ConversationEncoder, Dialogue, TokenizedExample
from heredity.train.models.causal_lm import CausalLM

_SEED_STRIDE = 2**20  # of one seed


@dataclass(frozen=True)
class OnPolicyBatches:
    """Batches of a step: the student's answers to `batch` prompts."""

    network: CausalLM
    prompts: BatchSampler
    stops: frozenset[int]
    longest: int
    temperature: float

    def of(self, step: int) -> list[PackedBatch]:
        """The batches of a step, written by the student as it is now."""
        asked = [
            self.prompts.examples[self.prompts.at(place)].document.tokens
            for place in range(step * self.prompts.batch, (step + 1) * self.prompts.batch)
        ]
        seed = self.prompts.seed * _SEED_STRIDE + step
        said = self.network.write(asked, self.longest, self.temperature, seed, self.stops)
        documents = [
            Document((*p, *a), (*[False] * len(p), *[True] * len(a)))
            for p, a in zip(asked, said, strict=True)
        ]
        order = BatchSampler(
            [TokenizedExample(d) for d in documents], len(documents), 0, self.prompts.product
        )
        return order.of(0)


def prompt_sampler(
    writer: ConversationEncoder, dialogues: Sequence[Dialogue], batch: int, seed: int, longest: int
) -> BatchSampler:
    """The conversations up to their last answer, as tokens; those longer than `longest` are left out.

    Raises UsageError where none is left.
    """
    found = [tokens for each in dialogues if len(tokens := writer.prompt(each.messages)) <= longest]
    if not found:
        raise UsageError(f"Every prompt is longer than {longest} tokens. Raise max_tokens.")
    return BatchSampler(
        [TokenizedExample(Document(tokens, (False,) * len(tokens))) for tokens in found], batch, seed
    )
