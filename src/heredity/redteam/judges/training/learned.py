"""Trains the heads of the judge `learned`: ridge-penalized logistic regressions on described answers.

Promises: the same rows give the same weights. Sets and their classes weigh about the same, so that no label
convention dominates; both classes weigh the same. The head of compliance starts from the rules' margin. The
rest of what it learns is shrunk, so that it carries over to sets it has not seen.
Leaves to others: reading the data (data.py), describing answers (learned/model.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from heredity.core.errors import UsageError
from heredity.redteam.judges.learned import judge as learned
from heredity.redteam.judges.learned import model as marks
from heredity.redteam.judges.learned import signals
from heredity.redteam.judges.learned.model import (
    BASE,
    PRIOR,
    FeatureRow,
    Floats,
    LearnedHeads,
    SentenceEncoder,
    base_folder,
    describe,
    scale,
)
from heredity.redteam.judges.rules import judge as rules
from heredity.redteam.judges.training import crossvalidation
from heredity.redteam.judges.training import data as learned_data
from heredity.redteam.judges.training.crossvalidation import JudgedExample
from heredity.redteam.judges.training.data import LabelledAnswer

RIDGE = {"compliance": 0.03, "topic": 0.001}
WITHOUT_PROMPT = 0.3  # weight of a row's copy without its prompt, for judging an answer by itself
TOPIC_SCALE = 5.0  # of the vectors' numbers, which are small
SLOPES = (0.5, 3.0)  # the rules' margin is at least one half, so that no refusal falls into the band of doubt


class Described(NamedTuple):
    """Examples, and each with its prompt and without it."""

    examples: Sequence[LabelledAnswer]
    asked: Sequence[FeatureRow]
    alone: Sequence[FeatureRow]

    def where(self, wanted: Sequence[bool]) -> Described:
        """The selected examples."""
        kept = [i for i, is_wanted in enumerate(wanted) if is_wanted]
        examples, asked, alone = self
        return Described([examples[i] for i in kept], [asked[i] for i in kept], [alone[i] for i in kept])


class Regression(NamedTuple):
    """The training data of a head: rows, targets from 0 to 1, weights that sum to one, and initial logits."""

    x: Floats
    y: Floats
    weight: Floats
    start: Floats


def fit_heads(data: Described) -> dict[str, Floats]:
    """The arrays of a Model."""
    features = np.array([row.features for rows in (data.asked, data.alone) for row in rows])
    mean, deviation = features.mean(0), np.maximum(features.std(0), 0.03)
    arrays: dict[str, Floats] = {"features.mean": mean, "features.scale": deviation}
    arrays["refusal.slope"] = fit_slope(_problem(data, "refusal"))
    problem = _problem(data, "compliance")
    problem = problem._replace(x=scale(problem.x, mean, deviation), start=-PRIOR * problem.start)
    arrays["compliance.weight"], arrays["compliance.bias"] = fit_logistic(problem, RIDGE["compliance"])
    topic = _problem(data, "topic")
    topic = topic._replace(x=topic.x * TOPIC_SCALE, start=0 * topic.start)
    weight, bias = fit_logistic(topic, RIDGE["topic"])
    return arrays | {"topic.weight": weight * TOPIC_SCALE, "topic.bias": bias}


def _problem(data: Described, part: str) -> Regression:
    """The rows with a known target, and a copy without the prompt of each row that has one.

    They start from the rules' margin.
    """
    known = data.where([head_target(e, part) is not None for e in data.examples])
    if not known.examples:
        raise UsageError(f"Nothing to learn '{part}' from: the data needs labels of refusal and of harm.")
    y = np.array([head_target(e, part) for e in known.examples], float)
    weight = set_weights([e.set for e in known.examples], y)
    for chosen in (y >= 0.5, y < 0.5):
        weight[chosen] /= max(1e-9, weight[chosen].sum())
    has_prompt = np.array([bool(e.prompt) for e in known.examples])
    field = "topic" if part == "topic" else "features"
    asked, alone = (np.array([getattr(r, field) for r in rows]) for rows in (known.asked, known.alone))
    start, start_alone = (np.array([row.margin for row in rows]) for rows in (known.asked, known.alone))
    kept = np.where(has_prompt, 1 - WITHOUT_PROMPT, 1)
    weights = np.concatenate([weight * kept, weight[has_prompt] * WITHOUT_PROMPT])
    return Regression(
        np.vstack([asked, alone[has_prompt]]),
        np.concatenate([y, y[has_prompt]]),
        weights / weights.sum(),
        np.concatenate([start, start_alone[has_prompt]]),
    )


def head_target(example: LabelledAnswer, part: str) -> float | None:
    """The target of a head for an example; None if it should not learn from it.

    Harmless requests teach nothing about compliance with harm, and made-up pairs only what a topic is.
    """
    is_answer, is_labelled = example.family == "answers", bool(example.task)
    teaches = {"refusal": is_labelled or is_answer, "compliance": is_labelled, "topic": True}
    found: float | None = getattr(example, part)
    return found if teaches[part] else None


def set_weights(sets: Sequence[str], y: Floats) -> Floats:
    """A set weighs the root of its size, shared evenly by its two classes if it has both."""
    names, positive, weight = np.array(sets), y >= 0.5, np.ones(len(y))
    for name in sorted(set(sets)):
        mine = names == name
        has_both = bool((mine & positive).any() and (mine & ~positive).any())
        for chosen in (mine & positive, mine & ~positive):
            if chosen.any():
                weight[chosen] = math.sqrt(mine.sum()) * (0.5 if has_both else 1) / chosen.sum()
    return weight


def fit_logistic(problem: Regression, ridge: float) -> tuple[Floats, Floats]:
    """Weights and bias of a ridge-penalized logistic regression that starts from given logits."""
    from scipy.optimize import minimize

    x, y, weight, start = problem
    n_features = x.shape[1]
    z = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.append(np.full(n_features, ridge), 0.0)

    def loss(theta: Floats) -> tuple[float, Floats]:
        at = z @ theta + start
        gradient = z.T @ (weight * (_sigmoid(at) - y)) + penalty * theta
        return float(weight @ (np.logaddexp(0, at) - y * at) + penalty @ theta**2 / 2), gradient

    found = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return found[:n_features], found[n_features:]


def fit_slope(problem: Regression) -> Floats:
    """The slope of the probability of a refusal over the rules' margin: one number, above zero."""
    from scipy.optimize import minimize_scalar

    def loss(slope: float) -> float:
        at = slope * problem.start
        return float(problem.weight @ (np.logaddexp(0, at) - problem.y * at))

    return np.array([minimize_scalar(loss, bounds=SLOPES, method="bounded").x])


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


Say = Callable[[str], None]


def train_learned(path: Path, roots: Sequence[Path], out: Path, say: Say) -> dict[str, Any]:
    """Train on a data file, cross-validate, and write weights and card into `out`; returns the card.

    The measured weights are temporary: they leave out each fold of questions, and each family of sets in
    turn. Raises BadInput or Unavailable.
    """
    spec = learned_data.read_spec(path)
    data = learned_data.read_examples(spec, roots)
    described = _describe(SentenceEncoder(base_folder()), data.examples, say)
    arrays: dict[str, Any] = {**fit_heads(described)}
    arrays[marks.MARKS] = marks.training_marks(e.text for e in data.examples)
    say("trained the weights; now measuring by folds and by sets")
    facts = {
        "base": {"name": BASE, "sha256": _sha256(base_folder() / "model.safetensors")},
        "split": crossvalidation.SPLIT,
        "seed": spec.seed,
        "n": {"trained on": len(data.examples), "held out": 0},
        "data": [
            crossvalidation.describe_data(labels) for labels in (*spec.labels, *spec.answers, *spec.requests)
        ],
        "files": data.files,
        "judges": versions(),
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy", "scipy")},
        "measured": list(_measured(described)),
    }
    return crossvalidation.write_weights(
        out / "learned.safetensors", out / "learned.json", "learned", arrays, facts
    )


def versions() -> dict[str, int]:
    """The versions of the code that an answer's features depend on."""
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
    for how, kin in crossvalidation.groupings(described.examples).items():
        yield from crossvalidation.count_correct("learned", how, _said(described, kin))


def _said(described: Described, kin: Sequence[str]) -> Iterator[JudgedExample]:
    """The predictions of weights on rows that were left out of their training."""
    for each in crossvalidation.rounds(described.examples, kin):
        model, held = (
            LearnedHeads(fit_heads(described.where(each.kept))),
            described.where(each.held),
        )
        for example, row in zip(held.examples, held.asked, strict=True):
            p = model.scores(row)
            is_told = {task: learned.is_decided(getattr(p, task)) for task in ("refusal", "harm")}
            yield JudgedExample(example, p.refusal, p.harm, is_told)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
