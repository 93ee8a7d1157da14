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

from heredity.redteam.judges.learned import judge as learned
from heredity.redteam.judges.learned import signals
from heredity.redteam.judges.learned.model import BASE, LearnedHeads, SentenceEncoder, base_folder, describe
from heredity.redteam.judges.rules import judge as rules
from heredity.redteam.judges.training import data as learned_data
from heredity.redteam.judges.training import fit as learned_train
from heredity.redteam.judges.training import marks, trained
from heredity.redteam.judges.training.data import LabelledAnswer
from heredity.redteam.judges.training.fit import Described
from heredity.redteam.judges.training.trained import JudgedExample

Say = Callable[[str], None]


def train(path: Path, roots: Sequence[Path], out: Path, say: Say) -> dict[str, Any]:
    """Train on a data file, measure by what was left out, write weights and card into `out`; the card.

    Measured are weights that are thrown away: without each fold of questions, and without each family of sets
    in turn. Raises BadInput or Unavailable.
    """
    spec = learned_data.read_spec(path)
    data = learned_data.read(spec, roots)
    described = _describe(SentenceEncoder(base_folder()), data.examples, say)
    arrays: dict[str, Any] = {**learned_train.train(described)}
    arrays[marks.NAME] = marks.marks(e.text for e in data.examples)
    say("trained the weights; now measuring by folds and by sets")
    facts = {
        "base": {"name": BASE, "sha256": _sha256(base_folder() / "model.safetensors")},
        "split": trained.SPLIT,
        "seed": spec.seed,
        "n": {"trained on": len(data.examples), "held out": 0},
        "data": [trained.about(labels) for labels in (*spec.labels, *spec.answers, *spec.requests)],
        "files": data.files,
        "judges": versions(),
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy", "scipy")},
        "measured": list(_measured(described)),
    }
    return trained.write(out / "learned.safetensors", out / "learned.json", "learned", arrays, facts)


def versions() -> dict[str, int]:
    """The versions of what an answer's features depend on."""
    return {"rules": rules.VERSION, "signals": signals.VERSION}


def _describe(encoder: SentenceEncoder, examples: Sequence[LabelledAnswer], say: Say) -> Described:
    asked, alone = [], []
    for i, e in enumerate(examples):
        asked.append(describe(encoder, e.prompt, e.text))
        alone.append(describe(encoder, "", e.text))
        if i % 1000 == 999:
            say(f"described {i + 1} of {len(examples)} answers")
    return Described(examples, asked, alone)


def _measured(described: Described) -> Iterator[dict[str, Any]]:
    for how, kin in trained.kins(described.examples).items():
        yield from trained.counted("learned", how, _said(described, kin))


def _said(described: Described, kin: Sequence[str]) -> Iterator[JudgedExample]:
    """What weights say of rows that were left out of their training."""
    for each in trained.rounds(described.examples, kin):
        model, held = (
            LearnedHeads(learned_train.train(described.where(each.kept))),
            described.where(each.held),
        )
        for example, row in zip(held.examples, held.asked, strict=True):
            p = model.scores(row)
            is_told = {task: learned.is_decided(getattr(p, task)) for task in ("refusal", "harm")}
            yield JudgedExample(example, p.refusal, p.harm, is_told)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
