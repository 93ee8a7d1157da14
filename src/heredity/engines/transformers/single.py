"""One request at a time through transformers' own `generate`: for every architecture that it loads.

Promises: the shapes of all products depend on the request only, and so do its bits.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from heredity.core.errors import EngineFailure
from heredity.engines.transformers.session import Row, TokenTaker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from heredity.engines.transformers.activated import Activation


class SingleBatch:
    """A batch of one row, which `step` answers to its end."""

    width = 1

    def __init__(self, model: PreTrainedModel, activation: Activation | None = None) -> None:
        self._model, self._activation = model, activation
        self.rows: list[Row] = []

    def has_room(self, row: Row) -> bool:  # noqa: ARG002
        """Return True if no row is there."""
        return not self.rows

    def step(self, take: TokenTaker) -> None:
        """Answer the row."""
        for row in self.rows:
            ids = torch.tensor([row.tokens], device=self._model.device)
            config = GenerationConfig(max_new_tokens=row.max_tokens, do_sample=False, use_cache=True)
            awake = nullcontext() if self._activation is None else self._activation.over(row.tokens)
            try:
                with awake:
                    self._model.generate(
                        ids,
                        generation_config=config,
                        attention_mask=torch.ones_like(ids),
                        logits_processor=LogitsProcessorList([_Chooser(row, take)]),
                        stopping_criteria=StoppingCriteriaList([_Stopper(row)]),
                    )
            except (ValueError, TypeError, IndexError, RuntimeError) as error:
                raise EngineFailure(f"transformers failed at this model: {error}") from error


class _Chooser(LogitsProcessor):  # type: ignore[misc]
    """Draws the token, and leaves `generate` no other."""

    def __init__(self, row: Row, take: TokenTaker) -> None:
        self._row, self._take = row, take

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        token = self._take(self._row, scores[0].cpu())
        only = torch.full_like(scores, -torch.inf)
        only[0, token] = 0
        return only


class _Stopper(StoppingCriteria):  # type: ignore[misc]
    """Stops when the row has its last token."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:  # noqa: ARG002
        return torch.tensor([bool(self._row.stop)], device=input_ids.device)
