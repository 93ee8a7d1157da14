"""A suffix that makes a model begin its answer with a given text: greedy coordinate gradient.

Source: Zou et al. 2023 (arXiv 2307.15043). A step takes the gradient of the target's loss with respect to the
tokens of the suffix. It draws candidates that differ in one token from among the likeliest replacements, and
keeps the best one if it improves the loss. The prompt before the suffix is computed once. Tokens are
printable ASCII. A candidate whose text would be tokenized differently is dropped, so that the search and the
attack use the same text.

Promises: equal weights, texts, effort and seed give the same suffix; at most `steps` gradients and
`steps * CANDIDATES` forward passes.
Leaves to others: the target (redteam/attacks/gcg.py), and where the suffix is stored.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from heredity.core.errors import EngineFailure
from heredity.core.records import Record
from heredity.formats.weights import ON_CPU

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

CANDIDATES = 64
N_TOKENS = 12  # of the suffix
_LIKELY = 64  # replacements per position that a candidate is drawn from
_AT_ONCE = 16  # candidates in one forward pass
_START = " !"


class Suffix(Record, frozen=True):
    """The result of a search. The losses are means over the target, in nats per token, before and after."""

    text: str
    loss_before: float
    loss_after: float
    n_steps: int


class SuffixPlace(NamedTuple):
    """The tokens around the suffix, and the target after them."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]


class TokenizerView(NamedTuple):
    """The needed part of a tokenizer: rendered text to tokens, and tokens to text."""

    encode: Callable[[str], tuple[int, ...]]
    continuation: Callable[[str], tuple[int, ...]]
    decode: Callable[[list[int]], str]


def load(folder: Path, device: torch.device = ON_CPU) -> PreTrainedModel:
    """Load the model in float32 on a device, for gradients."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.inference_mode(False):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        return model.eval().to(device).requires_grad_(False)


def search(
    model: PreTrainedModel,
    tokenizer: TokenizerView,
    before: str,
    after: str,
    target: str,
    steps: int,
    seed: int,
) -> Suffix:
    """Return the suffix between `before` and `after` that makes `target` likely.

    Raises EngineFailure if the tokenizer merges the suffix with its neighbours.
    """
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames the argument for its cache
        start = tokenizer.encode(before)
        tail = tokenizer.encode(before + after)[len(start) :]
        place = SuffixPlace(start, tail, tokenizer.continuation(target))
        tokens = list(tokenizer.continuation(_START)) * N_TOKENS
        search_run = _SuffixSearch(model, tokenizer, place, before, after, seed)
        if not search_run.is_stable(tokens):
            raise EngineFailure("this model's tokenizer leaves no place for a suffix: gcg cannot search here")
        return search_run.run(tokens, steps)


class _SuffixSearch:
    """One running search."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: TokenizerView,
        place: SuffixPlace,
        before: str,
        after: str,
        seed: int,
    ) -> None:
        self._model, self._tokenizer, self._place = model, tokenizer, place
        self._before, self._after = before, after
        self._draw = torch.Generator().manual_seed(seed)
        self._matrix = model.get_input_embeddings().weight
        n = len(self._matrix)
        allowed = torch.zeros(n, dtype=torch.bool)
        for token in range(n):
            text = tokenizer.decode([token])
            allowed[token] = bool(text.strip()) and text.isascii() and text.isprintable() and "<" not in text
        self._allowed = allowed.to(model.device)
        head = torch.tensor([place.before], device=model.device)
        self._cache = model(head, use_cache=True, logits_to_keep=1).past_key_values

    def run(self, tokens: list[int], steps: int) -> Suffix:
        best = first = float(self._losses([tokens])[0])
        for _ in range(steps):
            swaps = one_token_swaps(tokens, self._gradient(tokens), self._allowed, self._draw, CANDIDATES)
            others = [one for one in swaps if self.is_stable(one)]
            if not others:
                continue
            losses = self._losses(others)
            at = int(losses.argmin())
            if float(losses[at]) < best:
                best, tokens = float(losses[at]), others[at]
        return Suffix(self._tokenizer.decode(tokens), round(first, 4), round(best, 4), steps)

    def is_stable(self, tokens: list[int]) -> bool:
        """Return True if the suffix's text, in its place, is tokenized into exactly these tokens."""
        text, place = self._tokenizer.decode(tokens), self._place
        if text != text.rstrip():
            return False
        whole = self._tokenizer.encode(self._before + text + self._after)
        return whole == (*place.before, *tokens, *place.after)

    def _gradient(self, tokens: list[int]) -> torch.Tensor:
        """Return the gradient of the loss with respect to each token: (positions, vocabulary)."""
        with torch.enable_grad():
            one_hot = functional.one_hot(self._tensor(tokens), len(self._matrix)).float().requires_grad_()
            rest = self._matrix[list(self._place.after + self._place.target)]
            embedded = torch.cat([one_hot @ self._matrix, rest])[None]
            loss = self._loss(embedded, copy.deepcopy(self._cache))
            return torch.autograd.grad(loss.sum(), one_hot)[0]

    def _losses(self, many: list[list[int]]) -> torch.Tensor:
        losses = []
        for start in range(0, len(many), _AT_ONCE):
            some = many[start : start + _AT_ONCE]
            cache = copy.deepcopy(self._cache)
            if len(some) > 1:
                cache.batch_repeat_interleave(len(some))
            whole = [[*one, *self._place.after, *self._place.target] for one in some]
            losses.append(self._loss(self._matrix[self._tensor(whole)], cache))
        return torch.cat(losses)

    def _tensor(self, tokens: Sequence[int] | Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor(tokens, device=self._matrix.device)

    def _loss(self, embedded: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Return the mean loss of the target's tokens, per row."""
        embedded = embedded * self._scale
        n = len(self._place.target)
        logits = self._model(
            inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=n + 1
        ).logits[:, :-1]
        wanted = self._tensor(self._place.target).expand(len(embedded), n)
        return functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(dim=1)

    @property
    def _scale(self) -> float:
        """The factor that a model applies to its embeddings (Gemma); it is not in the matrix."""
        return float(getattr(self._model.get_input_embeddings(), "scalar_embed_scale", 1.0))


def one_token_swaps(
    tokens: list[int], gradient: torch.Tensor, allowed: torch.Tensor, draw: torch.Generator, n: int
) -> list[list[int]]:
    """Return at most `n` candidates, each with one token replaced by one of its likeliest replacements.

    gradient: of the loss with respect to each token, (positions, vocabulary). allowed: (vocabulary,)
    """
    n_likely = min(_LIKELY, int(allowed.sum()))
    likely = (-gradient).masked_fill(~allowed, -torch.inf).topk(n_likely).indices.tolist()
    places = torch.randint(len(tokens), (n,), generator=draw).tolist()
    picks = torch.randint(n_likely, (n,), generator=draw).tolist()
    swaps: list[list[int]] = []
    for place, pick in zip(places, picks, strict=True):
        one = list(tokens)
        one[place] = likely[place][pick]
        if one != tokens and one not in swaps:
            swaps.append(one)
    return swaps
