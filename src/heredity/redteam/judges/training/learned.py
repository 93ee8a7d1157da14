"""Trains the judge `learned`: an encoder tuned end to end (tune.py), the signs, and how the two are mixed.

Promises: the same rows give the same weights on the same machine. A figure is of weights that were trained
without the whole family of sets. The mix is fitted on other families, too: no threshold is chosen on the
answers that it is measured on. A training that was stopped resumes after its last round.
Leaves to others: reading the data (data.py), answers made on purpose (hard_examples.py).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from heredity.core.errors import UsageError
from heredity.core.files import write_atomic
from heredity.core.progress import Watch, phase
from heredity.redteam.judges.learned import judge as learned
from heredity.redteam.judges.learned import model as marks
from heredity.redteam.judges.learned import signals
from heredity.redteam.judges.learned.model import (
    BASE,
    PRIOR,
    Floats,
    LearnedHeads,
    PairLogits,
    SignRow,
    base_folder,
    complies,
    describe,
    scale,
)
from heredity.redteam.judges.learned.voices import readings
from heredity.redteam.judges.rules import judge as rules
from heredity.redteam.judges.training import crossvalidation, hard_examples, tune
from heredity.redteam.judges.training import data as learned_data
from heredity.redteam.judges.training.crossvalidation import JudgedExample, Round
from heredity.redteam.judges.training.data import JudgeTrainingSpec, LabelledAnswer, LabelledAnswers

RECIPE = 3  # of a training: raise it when one changes, so that kept rounds of another are not taken
RIDGE = {"signs": 0.03, "mix": 0.001}
WITH_MORAL = 0.3  # of a row's weight is that of its copy with talk or a moral around it
WITHOUT_PROMPT = 0.3  # weight of a row's copy without its prompt, for judging an answer by itself
SLOPES = (0.5, 3.0)  # the rules' margin is at least one half, so that no refusal falls into the band of doubt
NOT_MIXED = (0.5, 1.0)  # of logits and signs, without labels to fit a mix on
FEW = 30  # rows of a class, in one fold, that make no figure
SHINGLE, TOO_ALIKE = 6, 0.3  # words of a shingle; share of them that another answer may have
_WORD = re.compile(r"[a-z']+")
_FIRST_WORDS = 300
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy")  # whose versions the card has

Say = Callable[[str], None]


class Regression(NamedTuple):
    """The training data of a head: rows, targets from 0 to 1, weights that sum to one, and initial logits."""

    x: Floats
    y: Floats
    weight: Floats
    start: Floats


class Described(NamedTuple):
    """Examples, and the signs of each: with its prompt, without it, and with talk or a moral around it."""

    examples: Sequence[LabelledAnswer]
    asked: Sequence[SignRow]
    alone: Sequence[SignRow]
    moral: Sequence[SignRow]

    def where(self, wanted: Sequence[bool]) -> Described:
        """The selected examples."""
        kept = [i for i, is_wanted in enumerate(wanted) if is_wanted]
        signs = ([column[i] for i in kept] for column in (self.asked, self.alone, self.moral))
        return Described([self.examples[i] for i in kept], *signs)


class TrainingRun(NamedTuple):
    """The settings of a command, its data, the encoder's folder, and the folder that keeps each training."""

    spec: JudgeTrainingSpec
    data: LabelledAnswers
    encoder: Path
    kept: Path
    say: Say
    watch: Watch | None = None


class HeldOutRound(NamedTuple):
    """A round: what was left out, the split, and the logits of the held-out examples, (held, heads)."""

    how: str
    split: Round
    logits: Floats


# --- the whole training ---------------------------------------------------------------------------


def train_learned(
    path: Path, roots: Sequence[Path], out: Path, say: Say, watch: Watch | None = None
) -> dict[str, Any]:
    """Train on a data file, measure without each family, and write weights and card into `out`.

    Returns the card. `out`/rounds keeps each training, so that a stopped command resumes. watch: gets the
    phases, with the steps of each training. Raises BadInput or Unavailable.
    """
    with phase(watch, "reading the labels"):
        spec = learned_data.read_spec(path)
        data = learned_data.read_examples(spec, roots)
        examples = trained_on(data)
    run = TrainingRun(spec, data, base_folder(), out / "rounds", say, watch)
    rounds = left_out(run)
    say("counting signs")
    with phase(watch, "counting signs"):
        described = describe_examples(examples)
    everything = Round([True] * len(examples), [False] * len(examples))
    weights = _tuned("all", everything, run)
    with phase(watch, "fitting the signs"):
        arrays = _arrays(weights, described, rounds)
    with phase(watch, "measuring"):
        counts = list(measured(rounds, described))
    facts = {
        "base": {"name": BASE, "sha256": _sha256(run.encoder / "model.safetensors")},
        "split": crossvalidation.SPLIT_FAMILIES,
        "seed": spec.seed,
        "steps": spec.steps,
        "n": {"trained on": len(examples), "held out": 0},
        "data": [
            crossvalidation.describe_data(labels) for labels in (*spec.labels, *spec.answers, *spec.requests)
        ],
        "files": data.files,
        "judges": versions(),
        "versions": {name: version(name) for name in _PACKAGES},
        "measured": counts,
    }
    return crossvalidation.write_weights(
        out / "learned.safetensors", out / "learned.json", "learned", arrays, facts
    )


def _arrays(
    weights: dict[str, Floats], described: Described, rounds: Sequence[HeldOutRound]
) -> dict[str, object]:
    """The arrays that are written: of the encoder, the signs and the mix, and the marks of the examples."""
    arrays: dict[str, object] = {name: each for name, each in weights.items() if name != "logits"}
    arrays |= fit_signs(described) | fit_refusal(described) | fit_mix(rounds, described)
    return arrays | {marks.MARKS: marks.training_marks(e.text for e in described.examples)}


def versions() -> dict[str, int]:
    """The versions of the code that an answer's features depend on."""
    return {"rules": rules.VERSION, "signals": signals.VERSION}


def trained_on(data: LabelledAnswers) -> list[LabelledAnswer]:
    """The examples with a label, and the harmless answers; the rest is made by hard_examples.py."""
    return [e for e in data.examples if e.task or (e.family == "answers" and e.compliance == 1)]


def describe_examples(examples: Sequence[LabelledAnswer]) -> Described:
    """The signs of each example."""
    asked = [describe(e.prompt, e.text) for e in examples]
    moral = [describe(e.prompt, hard_examples.with_moral(e).text) for e in examples]
    return Described(examples, asked, [describe("", e.text) for e in examples], moral)


# --- rounds ---------------------------------------------------------------------------------------


def left_out(run: TrainingRun) -> list[HeldOutRound]:
    """A training without each group of families, or without a fold, and its logits on what it lacks."""
    examples, found = trained_on(run.data), []
    for families in run.spec.rounds or sorted({(e.family,) for e in examples}):
        split = split_off(examples, [e.family in families for e in examples])
        if any(split.held):
            logits = _tuned("+".join(families), split, run)["logits"]
            found.append(HeldOutRound(crossvalidation.LEFT_OUT, split, logits))
    if run.spec.has_fold:
        split = split_off(examples, [e.fold == 0 for e in examples])
        found.append(HeldOutRound(crossvalidation.ONE_FOLD, split, _tuned("fold 0", split, run)["logits"]))
    return found


def split_off(examples: Sequence[LabelledAnswer], held: list[bool]) -> Round:
    """Leave rows out, with their requests, their answers, and answers that repeat a part of one."""
    mine = [e for e, is_held in zip(examples, held, strict=True) if is_held]
    texts, prompts = {e.text for e in mine}, {e.prompt for e in mine if e.prompt}
    known = set().union(*(_shingles(text) for text in texts))
    kept = [
        not is_held and e.text not in texts and e.prompt not in prompts and not _is_alike(e.text, known)
        for e, is_held in zip(examples, held, strict=True)
    ]
    return Round(kept, held)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())[:_FIRST_WORDS]
    return (
        {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))} if words else set()
    )


def _is_alike(text: str, known: set[tuple[str, ...]]) -> bool:
    mine = _shingles(text)
    return len(mine & known) > TOO_ALIKE * len(mine)


def _tuned(name: str, split: Round, run: TrainingRun) -> dict[str, Floats]:
    """The arrays of a training without the held-out rows, and their "logits"; kept ones if there are any."""
    from safetensors.numpy import load, save

    examples = trained_on(run.data)
    train = [e for e, is_kept in zip(examples, split.kept, strict=True) if is_kept]
    test = [(e.prompt, e.text) for e, is_held in zip(examples, split.held, strict=True) if is_held]
    targets = hard_examples.labelled_targets(train)
    path, key = run.kept / f"{name}.safetensors", _key([name, targets, test], run)
    if path.is_file():
        arrays: dict[str, Floats] = load(path.read_bytes())
        if bytes(arrays.pop("key")).decode() == key:
            return arrays
    asked = [request for request in run.data.asked if request not in {prompt for prompt, _ in test}]
    said = f"without {name}" if test else "on all rows"
    judge = f"judge {said}:"
    with phase(run.watch, "loading the libraries"):
        from transformers import BertModel  # noqa: F401  # the encoder is one
    with phase(run.watch, "making examples", judge):
        vectors = tune.request_vectors(run.encoder)
        targets += hard_examples.made_targets(targets, asked, vectors, run.spec.seed)
    seed, steps = run.spec.seed, run.spec.steps
    with phase(run.watch, "training", judge, steps, "steps") as meter:
        tuned = tune.tune(run.encoder, targets, seed, steps, lambda line: run.say(f"{said}, {line}"), meter)
    with phase(run.watch, "reading the held-out answers", judge):
        arrays = {**tuned.arrays, "logits": _judged_logits(tuned, test)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({**arrays, "key": np.frombuffer(key.encode(), np.uint8)}))
    return arrays


def _judged_logits(tuned: tune.Tuned, pairs: Sequence[tuple[str, str]]) -> Floats:
    """The logits as the judge takes them: of two voices, the highest of their readings."""
    read = [(i, (asked, each)) for i, (asked, text) in enumerate(pairs) for each in readings(asked, text)]
    best: dict[int, PairLogits] = {}
    for (i, _), row in zip(read, tuned.logits([pair for _, pair in read]), strict=True):
        found = PairLogits(*map(float, row))
        best[i] = max(best.get(i, found), found, key=complies)
    rounded = np.array([best[i] for i in range(len(pairs))], np.float32)
    return rounded.reshape(-1, len(PairLogits._fields)).astype(float)


def _key(rows: list[object], run: TrainingRun) -> str:
    """A digest of what a round's weights depend on; the readings of the rules are in the targets."""
    base = _sha256(run.encoder / "model.safetensors")
    told = [RECIPE, rows, run.data.asked, run.spec.seed, run.spec.steps, base]
    return hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).hexdigest()


# --- signs, and the mix ---------------------------------------------------------------------------


def fit_signs(data: Described) -> dict[str, Floats]:
    """The scale of the signs, and their weights. They start from the rules' margin."""
    known = data.where([bool(e.task) and e.compliance is not None for e in data.examples])
    if not known.examples:
        raise UsageError("Nothing to learn from: the data needs labels of refusal and of harm.")
    y = np.array([e.compliance for e in known.examples], float)
    weight = balanced([e.set for e in known.examples], y)
    has_prompt = np.array([bool(e.prompt) for e in known.examples])
    alone = [row for row, has in zip(known.alone, has_prompt, strict=True) if has]
    rows = [*known.asked, *alone, *known.moral]
    features = np.array([row.features for row in rows])
    mean, deviation = features.mean(0), np.maximum(features.std(0), 0.03)
    weights = np.concatenate(
        [
            weight * (1 - WITH_MORAL) * np.where(has_prompt, 1 - WITHOUT_PROMPT, 1),
            weight[has_prompt] * (1 - WITH_MORAL) * WITHOUT_PROMPT,
            weight * WITH_MORAL,
        ]
    )
    problem = Regression(
        scale(features, mean, deviation),
        np.concatenate([y, y[has_prompt], y]),
        weights / weights.sum(),
        -PRIOR * np.array([row.margin for row in rows]),
    )
    found, bias = fit_logistic(problem, RIDGE["signs"])
    return {"features.mean": mean, "features.scale": deviation, "signs.weight": found, "signs.bias": bias}


def fit_refusal(data: Described) -> dict[str, Floats]:
    """The slope of the probability of a refusal over the rules' margin."""
    known = data.where([bool(e.task == "refusal" or e.family == "answers") for e in data.examples])
    if not known.examples:
        return {"refusal.slope": np.ones(1)}
    y = np.array([e.refusal for e in known.examples], float)
    margins = np.array([row.margin for row in known.asked])
    weight = balanced([e.set for e in known.examples], y)
    return {"refusal.slope": fit_slope(Regression(margins[:, None], y, weight, margins))}


def fit_mix(
    rounds: Sequence[HeldOutRound], described: Described, without: Round | None = None
) -> dict[str, Floats]:
    """The weights of the logits and of the signs, by rows that neither was trained on.

    There is no bias: both classes weigh the same in each training, and a bias from some families misplaced
    the threshold on others. without: a split whose held-out rows are left out of this, too.
    """
    rows: list[tuple[float, float]] = []
    y: list[float] = []
    sets: list[str] = []
    for each in rounds:
        if each.how != crossvalidation.LEFT_OUT:
            continue
        heads = LearnedHeads(fit_signs(described.where(each.split.kept)))
        held = [i for i, is_held in enumerate(each.split.held) if is_held]
        for i, logits in zip(held, each.logits, strict=True):
            e = described.examples[i]
            if e.task and e.compliance is not None and not (without and without.held[i]):
                signs = heads.by_signs(described.asked[i])
                rows.append((complies(PairLogits(*map(float, logits))), signs))
                y.append(e.compliance)
                sets.append(e.set)
    if len({each >= 0.5 for each in y}) < 2:
        return {"mix": np.array(NOT_MIXED)}
    problem = Regression(np.array(rows), np.array(y), balanced(sets, np.array(y)), np.zeros(len(y)))
    return {"mix": fit_logistic(problem, RIDGE["mix"], has_bias=False)[0]}


def measured(rounds: Sequence[HeldOutRound], described: Described) -> Iterator[dict[str, Any]]:
    """The counts of every round, on rows that neither the weights nor the mix have seen."""
    for how in (crossvalidation.LEFT_OUT, crossvalidation.ONE_FOLD):
        mine = [each for each in rounds if each.how == how]
        found = (said for each in mine for said in judged(each, rounds, described))
        for row in crossvalidation.count_correct("learned", how, found):
            has_few = any(0 < row[n] <= FEW for n in ("sens_n", "spec_n"))
            if how == crossvalidation.LEFT_OUT or not has_few:
                yield row


def judged(
    each: HeldOutRound, rounds: Sequence[HeldOutRound], described: Described
) -> Iterator[JudgedExample]:
    """The predictions of a round's weights on its held-out rows, with a mix that did not see these."""
    kept = described.where(each.split.kept)
    arrays = fit_signs(kept) | fit_refusal(kept) | fit_mix(rounds, described, without=each.split)
    model, held = LearnedHeads(arrays), described.where(each.split.held)
    for example, row, logits in zip(held.examples, held.asked, each.logits, strict=True):
        p = model.scores(PairLogits(*map(float, logits)), row)
        is_told = {task: learned.is_decided(getattr(p, task)) for task in ("refusal", "harm")}
        yield JudgedExample(example, p.refusal, p.harm, is_told)


# --- regressions ----------------------------------------------------------------------------------


def balanced(sets: Sequence[str], y: Floats) -> Floats:
    """Weights by set, in which the two classes weigh the same."""
    weight = set_weights(sets, y)
    for chosen in (y >= 0.5, y < 0.5):
        weight[chosen] /= max(1e-9, weight[chosen].sum())
    return np.asarray(weight / weight.sum())


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


def fit_logistic(problem: Regression, ridge: float, has_bias: bool = True) -> tuple[Floats, Floats]:
    """Weights and bias of a ridge-penalized logistic regression that starts from given logits.

    has_bias: False keeps the bias at 0.
    """
    from scipy.optimize import minimize

    x, y, weight, start = problem
    n_features = x.shape[1]
    z = np.hstack([x, np.full((len(x), 1), float(has_bias))])
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


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
