"""transformers' model of each kind, and one product of its step, as a rehearsal runs them.

A stage's forward gives what the way back begins from, and its gradient: as many rows of logits as there ever
are at once, or the scores of a step's pairs.

Promises: what a product reads is all zeros; its sizes are those of a real one.
Leaves to others: fake tensors, shards and the tracker (rehearsal.py).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers.initialization import no_init_weights

from heredity.core import registry
from heredity.train.kernels import attention, bidirectional, rms_norm
from heredity.train.models import encoder
from heredity.train.models.architectures import Specials
from heredity.train.planning.cost_models.decoder import CHUNK
from heredity.train.planning.flops import Work

_NAMES = {"causal": "heredity_documents", "masked": "heredity_encoder", "contrastive": "sdpa"}
Begun = tuple[torch.Tensor, torch.Tensor]


class Stage(nn.Module):
    """A model and a product of it. FSDP takes it for the whole.

    Each kind's `forward`, of so many tokens or pairs, says where the way back begins, and its gradient.
    """

    def __init__(self, model: Any, work: Work) -> None:
        super().__init__()
        self.model, self._work = model, work

    def _laid(self, n: int) -> dict[str, Any]:
        """Whole contexts, end to end."""
        context = self._work.shape.context
        lengths = (context,) * (n // context)
        positions = torch.arange(context).repeat(len(lengths))[None]
        ids = torch.zeros((1, n), dtype=torch.int64)
        return {"input_ids": ids, "position_ids": positions, "lengths": lengths}


class _Causal(Stage):
    def forward(self, n: int) -> Begun:
        states = self.model.model(**self._laid(n), use_cache=False).last_hidden_state.squeeze(0)
        return _told(self.model.lm_head, states, min(CHUNK, n))


class _Masked(Stage):
    def forward(self, n: int) -> Begun:
        n_gaps = math.ceil(self._work.hidden * n)
        given = encoder.given(self.model, **self._laid(n))
        states = self.model.base_model(**given).last_hidden_state.squeeze(0)
        picked = encoder.transform(self.model)(states.index_select(0, torch.arange(n_gaps)))
        return _told(self.model.get_output_embeddings(), picked, min(CHUNK, n_gaps))


class _Contrastive(Stage):
    def forward(self, n: int) -> Begun:
        side, _ = self._work.picture or (0, 0)
        pictures = torch.zeros(n, 3, side, side)
        rows = torch.zeros((n, self._work.shape.context), dtype=torch.int64)
        weight = next(self.model.parameters())
        given = (
            self.model.get_image_features(pixel_values=pictures.to(weight.dtype)),
            self.model.get_text_features(input_ids=rows),
        )
        arrows = [functional.normalize(each.pooler_output.float()) for each in given]
        scale = self.model.logit_scale.float().exp()
        return _compared(scale * arrows[0], arrows[1], self._work.batch)


def _told(head: nn.Module, states: torch.Tensor, n_rows: int) -> Begun:
    """As objectives/causal.py, whose way back asks for a number."""
    logits = head(states[-n_rows:])
    wide = logits.detach().float()
    return logits, torch.log_softmax(wide, 1).exp_().to(logits.dtype)


def _compared(pictures: torch.Tensor, captions: torch.Tensor, batch: int) -> Begun:
    """Own pictures against all captions of a step and, where a step has more, own captions against all
    pictures."""
    others = math.ceil(batch / len(pictures))
    if others == 1:
        scores = pictures @ captions.T
        return scores, _gradient(scores) + _gradient(scores.T).T
    all_pictures, all_captions = (each.repeat(others, 1) for each in (pictures, captions))  # as if gathered
    scores = torch.cat([pictures @ all_captions.T, captions @ all_pictures.T])
    return scores, _gradient(scores)


def _gradient(scores: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(scores.detach(), 1).exp_()


_STAGES = {"causal": _Causal, "masked": _Masked, "contrastive": _Contrastive}


def stage(work: Work, runs_again: bool, dtype: torch.dtype) -> Stage:
    """The model of a work's architecture, its weights in a dtype."""
    made = registry.load("train.models.architectures", work.architecture)
    shape = work.shape if work.unit == "token" else work.towers
    config = transformers.AutoConfig.for_model(**made.config(shape, Specials(0, 0, 0)))
    transformers.AttentionInterface.register(_NAMES["causal"], attention.attend)
    transformers.AttentionInterface.register(_NAMES["masked"], bidirectional.attend)
    kinds = {"causal": transformers.AutoModelForCausalLM, "masked": transformers.AutoModelForMaskedLM}
    kind = kinds.get(made.OBJECTIVE, transformers.AutoModel)
    with no_init_weights():  # some are drawn by a rule that asks for numbers
        model = kind.from_config(config, dtype=dtype, attn_implementation=_NAMES[made.OBJECTIVE])
    model.tie_weights()
    if runs_again:
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    if work.is_on_cpu:
        rms_norm.quicken(model)
    return _STAGES[made.OBJECTIVE](model.train(), work)
