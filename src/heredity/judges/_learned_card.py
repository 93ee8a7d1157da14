"""From a data file to the shipped weights of the judge `learned` and the card that says what they are.

Promises: every figure of the card is of rows that the weights behind it were not trained on, with its counts
and those of `rules` on the same rows; the card names data with hashes and licences, split, seed, base model
and versions, of the judges' own code as numbers.
Leaves to others: reading (_learned_data.py), training (_learned_train.py), measuring files (_quality.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from heredity.judges import _learned_data, _learned_signals, _learned_train, _seen, _trained, learned, rules
from heredity.judges._learned_data import Example
from heredity.judges._learned_encoder import BASE, Encoder, base_folder
from heredity.judges._learned_model import Model, describe
from heredity.judges._learned_train import Described
from heredity.judges._trained import Said

Say = Callable[[str], None]


def train(path: Path, roots: Sequence[Path], out: Path, say: Say) -> dict[str, Any]:
    """Train on a data file, measure by what was left out, write weights and card into `out`; the card.

    Measured are weights that are thrown away: without each fold of questions, and without each family of sets
    in turn. Raises BadInput or Unavailable.
    """
    spec = _learned_data.read_spec(path)
    data = _learned_data.read(spec, roots)
    described = _describe(Encoder(base_folder()), data.examples, say)
    arrays: dict[str, Any] = {**_learned_train.train(described)}
    arrays[_seen.NAME] = _seen.marks(e.text for e in data.examples)
    say("trained the weights; now measuring by folds and by sets")
    facts = {
        "base": {"name": BASE, "sha256": _sha256(base_folder() / "model.safetensors")},
        "split": _trained.SPLIT,
        "seed": spec.seed,
        "n": {"trained on": len(data.examples), "held out": 0},
        "data": [_trained.about(labels) for labels in (*spec.labels, *spec.answers, *spec.requests)],
        "files": data.files,
        "judges": versions(),
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy", "scipy")},
        "measured": list(_measured(described)),
    }
    return _trained.write(out / "learned.safetensors", out / "learned.json", "learned", arrays, facts)


def versions() -> dict[str, int]:
    """The versions of what an answer's features depend on."""
    return {"rules": rules.VERSION, "signals": _learned_signals.VERSION}


def _describe(encoder: Encoder, examples: Sequence[Example], say: Say) -> Described:
    asked, alone = [], []
    for i, e in enumerate(examples):
        asked.append(describe(encoder, e.prompt, e.text))
        alone.append(describe(encoder, "", e.text))
        if i % 1000 == 999:
            say(f"described {i + 1} of {len(examples)} answers")
    return Described(examples, asked, alone)


def _measured(described: Described) -> Iterator[dict[str, Any]]:
    for how, kin in _trained.kins(described.examples).items():
        yield from _trained.counted("learned", how, _said(described, kin))


def _said(described: Described, kin: Sequence[str]) -> Iterator[Said]:
    """What weights say of rows that were left out of their training."""
    for each in _trained.rounds(described.examples, kin):
        model, held = Model(_learned_train.train(described.where(each.kept))), described.where(each.held)
        for example, row in zip(held.examples, held.asked, strict=True):
            p = model.scores(row)
            is_told = {task: learned.is_decided(getattr(p, task)) for task in ("refusal", "harm")}
            yield Said(example, p.refusal, p.harm, is_told)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
