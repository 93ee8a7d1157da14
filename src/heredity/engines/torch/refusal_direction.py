"""The direction of refusal: found as a difference of means, and removed from the residual stream.

Source: Arditi et al. 2024 (arXiv 2406.11717). Half of the requests give a candidate for each layer and each
of the last prompt positions. It is the mean residual of harmful requests minus that of harmless ones. Only
the harmful requests that the model most likely refuses count. The other half selects among the candidates
that keep the first token after harmless requests nearly unchanged. The candidate whose removal makes a
refusing first token least likely wins. (The paper also requires that adding it causes refusals; that is left
out here.)

Promises: equal weights and requests give the same direction; each row is projected by itself.
Leaves to others: the requests (redteam/attacks/refusal_direction.py), and where the text is stored.
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
from heredity.formats.weights import ON_CPU

OPENINGS = ("I", "I'm", "Sorry", "As an", "Unfortunately", "No")  # the first words of a refusal, in English
FEWEST = 8  # requests of each kind: half to find, half to select
N_POSITIONS = 2  # last positions of the prompt; with most templates they belong to the template
EARLIEST, LATEST = (
    0.25,
    0.8,
)  # share of the layers between which a direction is looked for; 0.8 is the paper's
MAX_KL = 0.1  # nats by which the first token after a harmless request may change; the paper's
N_CHOOSE = 8  # requests of each kind to compare candidates

Prompts = Sequence[tuple[int, ...]]


class Direction(NamedTuple):
    """A direction, and what its removal does.

    text        base64 of its numbers: a unit vector (hidden,), fp32
    layer       the layer behind which it was found, from 0
    position    the position of the prompt, from 0 for the first of the last `N_POSITIONS`
    refusal     mean log-odds of a refusing first token after harmful requests, without the direction
    kl          nats, mean divergence of the first token after harmless requests
    n_near      how many candidates kept `kl` within `MAX_KL`; 0: the one of least `kl` was taken
    """

    text: str
    layer: int
    position: int
    refusal: float
    kl: float
    n_near: int


class _Candidate(NamedTuple):
    refusal: float
    kl: float
    place: int  # in the order of `_spread`


def find(
    decoder: Decoder,
    harmful: Prompts,
    harmless: Prompts,
    openings: Sequence[int],
    place: tuple[int, int] | None = None,
) -> Direction:
    """Find the direction. Raises UsageError for too few requests and for a place without a candidate.

    openings: first tokens of a refusal. place: the only (layer, position) to take, without a choice.
    """
    if min(len(harmful), len(harmless)) < FEWEST:
        raise UsageError(f"A direction needs at least {FEWEST} requests of each kind to be found.")
    apart = _means(decoder, _refused(decoder, harmful[::2], openings)) - _means(decoder, harmless[::2])
    asked, plain = _refused(decoder, harmful[1::2], openings)[:N_CHOOSE], harmless[1::2][:N_CHOOSE]
    before = _first_tokens(decoder, plain)
    candidates = []
    directions, first = _spread(apart), int(EARLIEST * len(apart))
    places = {(first + at // N_POSITIONS, at % N_POSITIONS): at for at in range(len(directions))}
    if place is not None and place not in places:
        raise UsageError(f"Layer and position are from {min(places)} to {max(places)}, and are {place}.")
    for at in places.values() if place is None else (places[place],):
        direction = directions[at]
        changed = decoder.hooked(_projected_from(direction))
        refusal = float(_log_odds(_first_tokens(changed, asked), openings).mean())
        after = _first_tokens(changed, plain)
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        candidates.append(_Candidate(refusal, kl, at))
    near = [one for one in candidates if one.kl <= MAX_KL]
    # If all change the model, take the smallest change: an ablation that breaks a model shows nothing.
    best = min(near, key=lambda one: one.refusal) if near else min(candidates, key=lambda one: one.kl)
    layer, position = divmod(best.place, N_POSITIONS)
    text = base64.b64encode(directions[best.place].cpu().numpy().astype("<f4").tobytes()).decode()
    return Direction(text, first + layer, position, best.refusal, best.kl, len(near))


def projection(text: str, device: torch.device = ON_CPU) -> ResidualHook:
    """Return a hook that removes the direction from every row of the residual stream."""
    return _projected_from(vector(text).to(device))


def vector(text: str) -> torch.Tensor:
    """Return the direction as a unit vector (hidden,), fp32. Raises EngineFailure for another text."""
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError as error:
        raise EngineFailure(f"this is no direction: {error}") from None
    return torch.from_numpy(numbers.copy())


def digest_of(text: str) -> str:
    """Return 12 hex digits that name a direction."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _projected_from(direction: torch.Tensor) -> ResidualHook:
    def hook(x: torch.Tensor) -> torch.Tensor:
        # A sum per row, not a matmul, whose order of summation may depend on the batch.
        along = (x.float() * direction).sum(-1, keepdim=True)
        return (x.float() - along * direction).to(x.dtype)

    return hook


def _spread(apart: torch.Tensor) -> list[torch.Tensor]:
    """Return unit vectors of (layers, positions, hidden), for the layers in question."""
    n = len(apart)
    layers = apart[int(EARLIEST * n) : max(int(LATEST * n), int(EARLIEST * n) + 1)]
    flat = layers.flatten(0, 1)
    return list(flat / flat.norm(dim=-1, keepdim=True).clamp_min(1e-6))


def _means(decoder: Decoder, prompts: Prompts) -> torch.Tensor:
    """Return the mean residual after each layer at the last positions: (layers, positions, hidden), fp32."""
    size = decoder.shape.n_layers, N_POSITIONS, decoder.shape.hidden_size
    total = torch.zeros(size, device=decoder.device)
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
    """Return log-probabilities of the token after each prompt: (prompts, vocabulary)."""
    last = torch.stack([_prefilled(decoder, prompt)[len(prompt) - 1] for prompt in prompts])
    return torch.log_softmax(decoder.logits(last).float(), dim=-1)


def _prefilled(decoder: Decoder, prompt: tuple[int, ...]) -> torch.Tensor:
    slots = decoder.slots(1, round_up(padded(prompt), BLOCK))
    return decoder.prefill(SharedPrefix((), [], []), slots, 0, prompt)


def _log_odds(logs: torch.Tensor, openings: Sequence[int]) -> torch.Tensor:
    """Return the log-odds of a refusing first token, per prompt."""
    refusing = logs[:, list(openings)].exp().sum(-1).clamp(1e-9, 1 - 1e-9)
    return (refusing / (1 - refusing)).log()


def _refused(decoder: Decoder, prompts: Prompts, openings: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the half of the prompts that the model most likely refuses."""
    odds = _log_odds(_first_tokens(decoder, prompts), openings).tolist()
    order = sorted(range(len(prompts)), key=lambda i: -odds[i])
    return [prompts[i] for i in order[: -(-len(prompts) // 2)]]
