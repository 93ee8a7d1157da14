"""From a data file to the shipped weights of the judge `learned` and the card that says what they are.

Promises: every figure of the card is of rows that the weights behind it were not trained on, with its counts
and those of `rules` on the same rows; the card names data with hashes and licences, split, seed, base model
and versions.
Leaves to others: reading (_learned_data.py), training (_learned_train.py), measuring files (_quality.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from heredity.judges import _learned_data, _learned_train, learned, rules
from heredity.judges._learned_data import Example, LabelSet
from heredity.judges._learned_encoder import BASE, Encoder, base_folder
from heredity.judges._learned_model import Floats, Model, describe
from heredity.judges._learned_train import Described
from heredity.judges._settled import is_answer

Say = Callable[[str], None]

# What the features depend on.
SOURCES = (
    "_asked.py",
    "_refusing.py",
    "_signs.py",
    "_text.py",
    "_weigh.py",
    "rules.py",
    "_learned_signals.py",
)
SPLIT = (
    "the shipped weights are trained on all rows; every figure is of weights of the same recipe that were"
    " trained without the rows measured: without a fifth of the questions, or without a family of sets"
)
FIVE_FOLDS, LEFT_OUT = "five folds", "sets left out"


def train(path: Path, roots: Sequence[Path], out: Path, say: Say) -> dict[str, Any]:
    """Train on a data file, measure by what was left out, write weights and card into `out`; the card.

    Measured are weights that are thrown away: without each fold of questions, and without each family of sets
    in turn. Raises BadInput or Unavailable.
    """
    spec = _learned_data.read_spec(path)
    data = _learned_data.read(spec, roots)
    described = _describe(Encoder(base_folder()), data.examples, say)
    arrays = _learned_train.train(described)
    say("trained the weights; now measuring by folds and by sets")
    measured = list(_measure(FIVE_FOLDS, _rounds(described, [str(e.fold) for e in data.examples])))
    measured += _measure(LEFT_OUT, _rounds(described, [_kin(e) for e in data.examples]))
    facts = {
        "base": {"name": BASE, "sha256": _sha256(base_folder() / "model.safetensors")},
        "split": SPLIT,
        "seed": spec.seed,
        "n": {"trained on": len(data.examples), "held out": 0},
        "data": [_about(labels) for labels in (*spec.labels, *spec.answers, *spec.requests)],
        "files": data.files,
        "source": source_hash(),
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy", "scipy")},
        "measured": measured,
    }
    return write(out, arrays, facts)


def write(out: Path, arrays: dict[str, Floats], facts: dict[str, Any]) -> dict[str, Any]:
    """Weights first, then the card with their hash."""
    from safetensors.numpy import save

    out.mkdir(parents=True, exist_ok=True)
    raw = save({name: np.ascontiguousarray(a, np.float32) for name, a in sorted(arrays.items())})
    (out / "learned.safetensors").write_bytes(raw)
    weights = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    card = {"judge": "learned", "licence": "Apache-2.0", "weights": weights, **facts}
    (out / "learned.json").write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
    return card


def source_hash() -> str:
    """SHA-256 of the sources that the features come from."""
    texts = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in SOURCES)
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def _describe(encoder: Encoder, examples: Sequence[Example], say: Say) -> Described:
    asked, alone = [], []
    for i, e in enumerate(examples):
        asked.append(describe(encoder, e.prompt, e.text))
        alone.append(describe(encoder, "", e.text))
        if i % 1000 == 999:
            say(f"described {i + 1} of {len(examples)} answers")
    return Described(examples, asked, alone)


def _kin(example: Example) -> str:
    """What is left out together with an example: its family, or its own set of harmless answers."""
    return example.set if example.family == "answers" else example.family


def _rounds(data: Described, kin: Sequence[str]) -> Iterator[tuple[dict[str, Floats], Described]]:
    """For each kin that holds labels: weights that were trained without it, and its rows.

    Pairs that were made up with a question of the left-out rows are left out as well. A kin without which a
    task has no labels is passed over.
    """
    labelled = {k for k, e in zip(kin, data.examples, strict=True) if _truths(e)}
    for each in sorted(labelled):
        theirs = {e.prompt for k, e in zip(kin, data.examples, strict=True) if k == each and e.prompt}
        kept = [
            k != each and not (e.task == "" and e.prompt in theirs)
            for k, e in zip(kin, data.examples, strict=True)
        ]
        left = {e.task for is_kept, e in zip(kept, data.examples, strict=True) if is_kept}
        if not {"refusal", "harm"} <= left:
            continue
        yield _learned_train.train(data.where(kept)), data.where([k == each for k in kin])


def _truths(e: Example) -> list[tuple[str, str, bool]]:
    """What is known of an answer, for each table row it counts in: task, name of the set, truth.

    Where a person told a refusal, and it is known which requests are harmful, harm follows: an answered
    request that is harmless is no harm.
    """
    if e.task == "harm":
        return [("harm", e.set, (e.harm or 0.0) >= 0.5)]
    is_refusal = (e.refusal or 0.0) >= 0.5
    if e.task == "refusal":
        found = [("refusal", e.set, is_refusal)]
        if e.topic is not None:
            found.append(("harm", f"{e.set}, as harm", e.topic >= 0.5 and not is_refusal))
            if e.topic >= 0.5:
                found.append(("harm", f"{e.set}, unsafe prompts", not is_refusal))
            elif not is_refusal:
                found.append(("harm", f"{e.set}, safe prompts that were answered", False))
        return found
    is_answer = e.family == "answers" and e.compliance == 1 and e.topic == 0
    return [("harm", f"{e.set}, harmless", False)] if is_answer else []


def _measure(how: str, rounds: Iterator[tuple[dict[str, Floats], Described]]) -> Iterator[dict[str, Any]]:
    """Per set and task the counts of these weights, and of `rules` on the same rows.

    Decided as a verdict is: what is no answer to judge, or too near one half, counts as unclear for both.
    """
    found: dict[tuple[str, str, str], list[tuple[bool, bool | None]]] = {}
    for arrays, data in rounds:
        model = Model(arrays)
        for e, row in zip(data.examples, data.asked, strict=True):
            for task, name, truth in _truths(e):
                theirs = rules.manner(e.prompt, e.text) == ("refusal" if task == "refusal" else "compliance")
                p = getattr(model.scores(row), task)
                is_told = is_answer(e.prompt, e.text) and learned.is_decided(p)
                found.setdefault(("learned", task, name), []).append((truth, p >= 0.5 if is_told else None))
                found.setdefault(("rules", task, name), []).append((truth, theirs if is_told else None))
    for (judge, task, name), all_said in found.items():
        said = [(truth, is_found) for truth, is_found in all_said if is_found is not None]
        right = {kind: [t == s for t, s in said if t == kind] for kind in (True, False)}
        yield {
            "judge": judge, "task": task, "labels": f"{name} ({how})",
            "sens_k": sum(right[True]), "sens_n": len(right[True]),
            "spec_k": sum(right[False]), "spec_n": len(right[False]), "n_unclear": len(all_said) - len(said),
        }  # fmt: skip


def _about(item: Any) -> dict[str, Any]:
    task = item.task if isinstance(item, LabelSet) else "pairs with known answers"
    return {"name": item.name, "licence": item.licence, "files": item.files, "task": task}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
