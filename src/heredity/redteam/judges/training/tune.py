"""Tunes the encoder of the judge `learned` end to end: low-rank adapters of linear layers, and four heads.

An answer does what was asked if it addresses the request *and* is usable. Labels of harm teach only the
product of the two. Answers made on purpose (hard_examples.py) teach each by itself.

Promises: the same targets and seed give the same weights on the same machine. A family weighs about the root
of its size, its two classes the same. Made answers have a fixed share.
Leaves to others: the targets (hard_examples.py), mixing in the signs, and measuring (learned.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from heredity.core.progress import Meter
from heredity.redteam.judges.learned.cross_encoder import (
    HEADS,
    RANK,
    SCALE,
    PairIds,
    PairTokenizer,
    linear_layers,
    load_bert,
    pooled,
)
from heredity.redteam.judges.learned.model import Floats
from heredity.redteam.judges.training.hard_examples import AnswerTarget

if TYPE_CHECKING:
    import torch
    from transformers import BertModel

BATCH = 16
FROZEN = 2  # lower layers that are not tuned: each costs a backward pass and would change little
LR, HEAD_LR, WARMUP = 4e-4, 1e-3, 0.08
MADE, ANSWERS = 0.25, 0.07  # shares of what is drawn
WITHOUT_PROMPT = 0.2  # of the labelled answers are read without their request
SMOOTHING, DROPOUT, WEIGHT_DECAY, CLIP_NORM = 0.03, 0.1, 0.01, 1.0
_SORTED = 16  # batches that are filled by length together: less padding

Say = Callable[[str], None]


class PairBatch(NamedTuple):
    """Padded pairs: tokens, segments, mask, and the ends of request and pair."""

    ids: torch.Tensor
    kinds: torch.Tensor
    mask: torch.Tensor
    n_first: torch.Tensor
    n_all: torch.Tensor


class Tuned(NamedTuple):
    """The arrays of the adapter and the heads in float16, and a function for the logits of many pairs."""

    arrays: dict[str, Floats]
    logits: Callable[[Sequence[tuple[str, str]]], Floats]


def tune(
    folder: Path, targets: Sequence[AnswerTarget], seed: int, steps: int, say: Say, meter: Meter | None = None
) -> Tuned:
    """Tune the encoder in `folder` on these targets. meter: counts the steps."""
    import torch

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer, network = PairTokenizer(folder), load_bert(folder)
    network.eval().requires_grad_(False)
    # The fused kernel's backward pass takes a third of the time on a CPU.
    network.set_attn_implementation("eager")
    adapters = add_adapters(network, torch.Generator().manual_seed(seed))
    heads = torch.nn.Linear(2 * network.config.hidden_size, len(HEADS))
    torch.nn.init.normal_(heads.weight, std=0.02)
    torch.nn.init.zeros_(heads.bias)
    low = [matrix for pair in adapters.values() for matrix in pair]
    optimizer = torch.optim.AdamW(
        [{"params": low, "lr": LR}, {"params": heads.parameters(), "lr": HEAD_LR}],
        weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98),
    )  # fmt: skip
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, steps))
    drop, total = torch.nn.Dropout(DROPOUT), 0.0
    drawn = schedule(targets, steps * BATCH, rng)
    for n, rows in enumerate(_by_length(drawn, tokenizer, rng), 1):
        read = _read(network, padded([pair for _, pair in rows]))
        loss = target_loss(heads(drop(read)), [target for target, _ in rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*low, *heads.parameters()], CLIP_NORM)
        optimizer.step()
        rate.step()
        total += float(loss.detach())
        if meter is not None:
            meter.reached(n)
        if n % 50 == 0:
            say(f"step {n} of {steps}: loss {total / 50:.3f}")
            total = 0.0
    return Tuned(_arrays(adapters, heads), lambda pairs: _logits(network, heads, tokenizer, pairs))


def _rate(n: int, steps: int) -> float:
    """The share of the learning rate in step n: a warm-up, then a line down."""
    n_warm = max(1, int(WARMUP * steps))
    return min((n + 1) / n_warm, max(0.02, (steps - n) / max(1, steps - n_warm)))


def schedule(targets: Sequence[AnswerTarget], n_draws: int, rng: random.Random) -> list[AnswerTarget]:
    """The answers of a training, drawn by family and class. None of a class repeats before all were drawn."""
    groups: dict[str, dict[bool, list[AnswerTarget]]] = {}
    for t in targets:
        name, side = (f"made: {t.kind}", False) if t.kind else (t.family, (t.complies or 0.0) >= 0.5)
        groups.setdefault(name, {}).setdefault(side, []).append(t)
    share = _shares(groups)
    names = sorted(share)
    bags: dict[tuple[str, bool], list[AnswerTarget]] = {}
    drawn = []
    for name in rng.choices(names, [share[each] for each in names], k=n_draws):
        side = rng.choice(sorted(groups[name]))
        bag = bags.setdefault((name, side), [])
        if not bag:
            bag += rng.sample(groups[name][side], len(groups[name][side]))
        t = bag.pop()
        is_labelled = not t.kind and t.family != "answers" and t.complies is not None
        if is_labelled and t.prompt and rng.random() < WITHOUT_PROMPT:
            t = t._replace(prompt="")
        drawn.append(t)
    return drawn


def _shares(groups: dict[str, dict[bool, list[AnswerTarget]]]) -> dict[str, float]:
    labelled = [g for g in groups if not g.startswith("made: ") and g != "answers"]
    made = [g for g in groups if g.startswith("made: ")]
    size = {g: math.sqrt(sum(map(len, groups[g].values()))) for g in labelled}
    share = {g: (1 - MADE - ANSWERS) * size[g] / sum(size.values()) for g in labelled}
    share |= {g: MADE / len(made) for g in made}
    return share | ({"answers": ANSWERS} if "answers" in groups else {})


def target_loss(logits: torch.Tensor, targets: Sequence[AnswerTarget]) -> torch.Tensor:
    """The mean cross-entropy of all targets that are known. (batch, heads) -> ()"""
    import torch
    from torch.nn import functional

    parts = []
    for column, name in enumerate(HEADS):
        known = [(i, getattr(t, name)) for i, t in enumerate(targets) if getattr(t, name) is not None]
        if known:
            at, y = _known(known)
            loss = functional.binary_cross_entropy_with_logits(logits[at, column], y, reduction="sum")
            parts.append((0.5 if name == "harmful" else 1.0) * loss)
    known = [(i, t.complies) for i, t in enumerate(targets) if t.complies is not None]
    if known:
        at, y = _known(known)
        both = functional.logsigmoid(logits[at, 1]) + functional.logsigmoid(logits[at, 2])
        neither = torch.log(-torch.expm1(both.clamp(max=-1e-6)))
        parts.append(-2 * (y * both + (1 - y) * neither).sum())
    return torch.stack(parts).sum() / len(targets)


def _known(known: Iterable[tuple[int, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and their smoothed targets."""
    import torch

    at, y = (torch.tensor(each) for each in zip(*known, strict=True))
    return at, y.float() * (1 - 2 * SMOOTHING) + SMOOTHING


def padded(pairs: Sequence[PairIds]) -> PairBatch:
    """Pairs as one batch."""
    import torch

    n = max(len(pair.ids) for pair in pairs)
    ids = torch.zeros((len(pairs), n), dtype=torch.long)
    kinds, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, pair in enumerate(pairs):
        ids[row, : len(pair.ids)] = torch.tensor(pair.ids)
        kinds[row, pair.n_first : len(pair.ids)] = 1
        mask[row, : len(pair.ids)] = 1
    first, whole = [pair.n_first for pair in pairs], [len(pair.ids) for pair in pairs]
    return PairBatch(ids, kinds, mask, torch.tensor(first), torch.tensor(whole))


def request_vectors(folder: Path) -> Callable[[list[str]], Floats]:
    """A function that gives the unit vectors of requests, by the encoder as it was pulled."""
    import torch

    tokenizer, network = PairTokenizer(folder), load_bert(folder).eval()
    known: dict[str, Floats] = {}

    def vectors(prompts: list[str]) -> Floats:
        new = [prompt for prompt in prompts if prompt not in known]
        for at in range(0, len(new), 4 * BATCH):
            some = new[at : at + 4 * BATCH]
            batch = padded([tokenizer.pair(prompt, "") for prompt in some])
            with torch.inference_mode():
                hidden = _hidden(network, batch)
                mean = (hidden * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)
                unit = torch.nn.functional.normalize(mean, dim=1)
            known.update(zip(some, unit.numpy(), strict=True))
        return np.array([known[prompt] for prompt in prompts])

    return vectors


def _by_length(
    drawn: Sequence[AnswerTarget], tokenizer: PairTokenizer, rng: random.Random
) -> list[list[tuple[AnswerTarget, PairIds]]]:
    pairs = [(t, tokenizer.pair(t.prompt, t.text)) for t in drawn]
    batches = []
    for at in range(0, len(pairs), BATCH * _SORTED):
        some = sorted(pairs[at : at + BATCH * _SORTED], key=lambda pair: len(pair[1].ids))
        mine = [some[i : i + BATCH] for i in range(0, len(some), BATCH)]
        rng.shuffle(mine)
        batches += mine
    return batches


def _hidden(network: BertModel, batch: PairBatch) -> torch.Tensor:
    """The last layer in float32, computed in bfloat16. (batch, tokens, hidden)"""
    import torch

    # Positions are given: the module's own buffer of them is not in the file of weights.
    places = torch.arange(batch.ids.shape[1])[None]
    with torch.autocast("cpu", torch.bfloat16):
        found = network(
            input_ids=batch.ids, token_type_ids=batch.kinds, attention_mask=batch.mask, position_ids=places
        )
    hidden: torch.Tensor = found.last_hidden_state
    return hidden.float()


def _read(network: BertModel, batch: PairBatch) -> torch.Tensor:
    return pooled(_hidden(network, batch), batch.n_first, batch.n_all)


def _logits(
    network: BertModel, heads: torch.nn.Linear, tokenizer: PairTokenizer, pairs: Sequence[tuple[str, str]]
) -> Floats:
    """The logits of many pairs, in batches by length."""
    import torch

    out = np.zeros((len(pairs), len(HEADS)))
    cut = [tokenizer.pair(*pair) for pair in pairs]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i].ids))
    with torch.inference_mode():
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            out[some] = heads(_read(network, padded([cut[i] for i in some]))).numpy()
    return out


def add_adapters(
    network: BertModel, generator: torch.Generator
) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Put an adapter next to every linear layer above the frozen ones; returns its matrices by name."""
    import torch
    from torch.nn import functional

    class Adapted(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base
            bound = 1 / math.sqrt(base.in_features)
            initial = (torch.rand((RANK, base.in_features), generator=generator) * 2 - 1) * bound
            self.a = torch.nn.Parameter(initial)
            self.b = torch.nn.Parameter(torch.zeros((base.out_features, RANK)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.base(x)
            return out + functional.linear(functional.linear(x, self.a * SCALE), self.b)

    found = {}
    for name, layer in list(linear_layers(network)):
        if int(name.partition(".")[0]) >= FROZEN:
            made = Adapted(layer)
            parent, _, key = name.rpartition(".")
            setattr(network.encoder.layer.get_submodule(parent), key, made)
            found[name] = (made.a, made.b)
    return found


def _arrays(
    adapters: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]], heads: torch.nn.Linear
) -> dict[str, Floats]:
    named: dict[str, torch.Tensor] = {}
    for name, (a, b) in adapters.items():
        named |= {f"{name}.a": a, f"{name}.b": b}
    named |= {"heads.weight": heads.weight, "heads.bias": heads.bias}
    return {name: matrix.detach().half().numpy() for name, matrix in named.items()}
