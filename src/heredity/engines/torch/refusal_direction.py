"""The direction of a refusal: found as a difference of means, taken out of the residual stream.

Source: Arditi et al. 2024 (arXiv 2406.11717). Half of the requests give a candidate for each layer and each
of the last positions of the prompt: mean residual of the harmful (those likelier refused, as one that is
granted shows no refusal) less that of the harmless. The other half chooses: of the candidates that leave the
first token after harmless requests nearly as it was, the one whose removal makes a refusing first token
least likely. (The paper also asks that adding it makes refusals; left out here.)

Promises: the same weights and requests give the same direction; a row is projected on its own.
Leaves to others: which requests (attacks/refusal_direction.py) and where the text is kept.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from heredity.core.errors import EngineFailure, UsageError
from heredity.engines.torch.decoder import BLOCK, Decoder, ResidualHook, SharedPrefix, padded, round_up

OPENINGS = ("I", "I'm", "Sorry", "As an", "Unfortunately", "No")  # with what a refusal begins, in English
FEWEST = 8  # of each kind: half to find, half to choose
N_POSITIONS = 2  # last positions of the prompt: with most templates they are all the template's own
EARLIEST, LATEST = (
    0.25,
    0.8,
)  # share of the layers between which a direction is looked for; 0.8 is the paper's
MOST_KL = 0.1  # nats by which the first token after a harmless request may move; the paper's
N_CHOOSE = 8  # requests of each kind by which candidates are compared

Prompts = Sequence[tuple[int, ...]]


class _Candidate(NamedTuple):
    refusal: float  # mean log-odds of a refusing first token after harmful requests, without the direction
    kl: float  # mean divergence of the first token after harmless requests
    direction: torch.Tensor


def find(decoder: Decoder, harmful: Prompts, harmless: Prompts, openings: Sequence[int]) -> str:
    """The direction as a text. `openings`: first tokens of a refusal. Raises UsageError: too few prompts."""
    if min(len(harmful), len(harmless)) < FEWEST:
        raise UsageError(
            f"A direction needs at least {FEWEST} requests of each kind to be found.", code="too-few-requests"
        )
    apart = _means(decoder, _refused(decoder, harmful[::2], openings)) - _means(decoder, harmless[::2])
    asked, plain = _refused(decoder, harmful[1::2], openings)[:N_CHOOSE], harmless[1::2][:N_CHOOSE]
    before = _first_tokens(decoder, plain)
    found = []
    for direction in _spread(apart):
        changed = decoder.hooked(_projected_from(direction))
        refusal = float(_log_odds(_first_tokens(changed, asked), openings).mean())
        after = _first_tokens(changed, plain)
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        found.append(_Candidate(refusal, kl, direction))
    near = [one for one in found if one.kl <= MOST_KL]
    # Where all move the model, the one that moves it least: an ablation that breaks it shows nothing.
    best = min(near, key=lambda one: one.refusal) if near else min(found, key=lambda one: one.kl)
    return base64.b64encode(best.direction.numpy().astype("<f4").tobytes()).decode()


def projection(text: str) -> ResidualHook:
    """What takes the direction out of every row of the residual stream."""
    return _projected_from(vector(text))


def vector(text: str) -> torch.Tensor:
    """The direction as numbers of length one: (hidden,), fp32. Raises EngineFailure for what is none."""
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError as error:
        raise EngineFailure(f"this is no direction: {error}", code="bad-direction") from None
    return torch.from_numpy(numbers.copy())


def digest_of(text: str) -> str:
    """12 hex digits that name a direction."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _projected_from(direction: torch.Tensor) -> ResidualHook:
    def hook(x: torch.Tensor) -> torch.Tensor:
        # A sum a row rather than a product with a vector, whose order of adding may follow the batch.
        along = (x.float() * direction).sum(-1, keepdim=True)
        return (x.float() - along * direction).to(x.dtype)

    return hook


def _spread(apart: torch.Tensor) -> list[torch.Tensor]:
    """Unit vectors of (layers, positions, hidden), of the layers that are looked at."""
    n = len(apart)
    layers = apart[int(EARLIEST * n) : max(int(LATEST * n), int(EARLIEST * n) + 1)]
    flat = layers.flatten(0, 1)
    return list(flat / flat.norm(dim=-1, keepdim=True).clamp_min(1e-6))


def _means(decoder: Decoder, prompts: Prompts) -> torch.Tensor:
    """Mean residual behind each layer at the last positions: (layers, positions, hidden), float32."""
    total = torch.zeros(decoder.shape.n_layers, N_POSITIONS, decoder.shape.hidden)
    for prompt in prompts:
        seen: list[torch.Tensor] = []

        def look(x: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(x)
            return x

        _prefilled(decoder.hooked(look), prompt)
        calls = 1 + 2 * decoder.shape.n_layers
        chunks = [seen[i : i + calls] for i in range(0, len(seen), calls)]
        for layer in range(decoder.shape.n_layers):
            rows = torch.cat([chunk[2 + 2 * layer] for chunk in chunks])[: len(prompt)]
            total[layer] += rows[-N_POSITIONS:].float()
    return total / len(prompts)


def _first_tokens(decoder: Decoder, prompts: Prompts) -> torch.Tensor:
    """Log-probabilities of the token behind each prompt: (prompts, vocabulary)."""
    last = torch.stack([_prefilled(decoder, prompt)[len(prompt) - 1] for prompt in prompts])
    return torch.log_softmax(decoder.logits(last).float(), dim=-1)


def _prefilled(decoder: Decoder, prompt: tuple[int, ...]) -> torch.Tensor:
    slots = decoder.slots(1, round_up(padded(prompt), BLOCK))
    return decoder.prefill(SharedPrefix((), [], []), slots, 0, prompt)


def _log_odds(logs: torch.Tensor, openings: Sequence[int]) -> torch.Tensor:
    """Of a refusing first token, one a prompt."""
    refusing = logs[:, list(openings)].exp().sum(-1).clamp(1e-9, 1 - 1e-9)
    return (refusing / (1 - refusing)).log()


def _refused(decoder: Decoder, prompts: Prompts, openings: Sequence[int]) -> list[tuple[int, ...]]:
    """The half of the prompts that the model is likeliest to refuse: what it grants shows no refusal."""
    odds = _log_odds(_first_tokens(decoder, prompts), openings).tolist()
    order = sorted(range(len(prompts)), key=lambda i: -odds[i])
    return [prompts[i] for i in order[: -(-len(prompts) // 2)]]
