"""Learns the head of `rubric:MODEL:head` on labelled answers, and measures it on held-out rows.

Promises: every figure of the card is of rows that the weights behind it were not trained on. Computed states
are saved next to the result at once, so a stopped run computes none twice.
Leaves to others: labels, rounds and counts (judges/__init__.py), the fit (learned.py).
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from heredity.core.errors import Damaged, UsageError, first_line
from heredity.core.files import write_atomic
from heredity.core.progress import Watch, phase
from heredity.engines import capabilities
from heredity.lab import judges as training
from heredity.lab.judges import JudgedExample, LabelledAnswer, Round, texts
from heredity.lab.judges import learned as learned_train
from heredity.lab.judges.learned import Regression, versions
from heredity.redteam.judges import learned as marks
from heredity.redteam.judges import rubric
from heredity.redteam.judges.learned import PRIOR, Floats, sigmoid
from heredity.redteam.judges.protocols import Models
from heredity.redteam.judges.rubric import RuleFeatures

_PLACES = ("behind", "behind", "before", "behind", "both")
_A_THIRD = 3  # of the answers that did no harm get a line: there are more of them


def with_appeals(examples: Sequence[LabelledAnswer]) -> list[LabelledAnswer]:
    """Each harmful answer once more, and every third other one, with a line to the judge.

    examples: answers of which is known whether they did the harm that was asked, in an order that depends
    only on their texts. Each result has the kind of its line, and its label as one of harm.
    """
    harmful = [e for e in examples if (e.compliance or 0.0) >= 0.5]
    others = [e for e in examples if (e.compliance or 0.0) < 0.5][::_A_THIRD]
    return [_with_line(e, i) for some in (harmful, others) for i, e in enumerate(some)]


def _with_line(e: LabelledAnswer, i: int) -> LabelledAnswer:
    kind = list(texts().lines)[i % len(texts().lines)]
    drawn = hashlib.sha256(f"{e.prompt}\0{e.text}\0{kind}".encode(errors="surrogatepass")).digest()
    line, place = texts().lines[kind][drawn[0] % len(texts().lines[kind])], _PLACES[drawn[1] % len(_PLACES)]
    before = f"{line}\n\n" if place != "behind" else ""
    behind = f"\n\n{line}" if place != "before" else ""
    return e._replace(text=f"{before}{e.text}{behind}", refusal=None, task="harm", line=kind)


Say = Callable[[str], None]
DEPTH = 0.64  # of a model's layers: where its state is read; 14 to 22 of 28 were tried
RIDGE = {"done": 2.0, "topic": 1.0}
ROWS = 500  # of a set at most: reading one takes about half a second of two cores
STATES = "states.safetensors"
LINES_LEFT_OUT = "kinds of lines left out"
_DELETE = "Delete it; what it held is read again."
_AT_ONCE = 64  # answers between two writes
_FOLDS_AT_ONCE = 2  # held out together with a kind of line


def _require_tasks(examples: Sequence[LabelledAnswer]) -> None:
    """Raise UsageError unless some answers are labelled as refusals or not, and others as harm or not."""
    if not {"refusal", "harm"} <= {e.task for e in examples}:
        raise UsageError(
            "Nothing to learn from: the data needs labels of refusal and of harm, on answers that fit into "
            "the model's context."
        )


def train_head(
    path: Path,
    roots: Sequence[Path],
    out: Path,
    name: str,
    models: Models,
    say: Say,
    rows: int = ROWS,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Read states of the model `name`, learn a head, measure it, and write both into `out`; returns the card.

    watch: gets the phases, with the count of the answers that were read.
    Raises BadInput, Unavailable, UsageError for a model whose states cannot be read.
    """
    with phase(watch, "reading the labels"):
        spec = training.read_spec(path)
        data = training.read_examples(spec, roots)
        examples = sample_rows(data.examples, rows)
    _require_tasks(examples)  # before the model reads for an hour
    out.mkdir(parents=True, exist_ok=True)
    engine, model = models.load(name), models.identify(name)
    layer = round(DEPTH * (1 if (weights := capabilities(engine).weights) is None else weights.n_layers))
    try:
        reader = rubric.StateReader(engine, layer)
        with phase(watch, "reading answers", name, len(examples), "rows") as meter:
            read = read_states(reader, f"{model} {layer}", examples, out / STATES, say, meter.reached)
    finally:
        engine.close()
    examples = [e for e, state in zip(examples, read, strict=True) if state is not None]
    _require_tasks(examples)
    states = np.array([state for state in read if state is not None])
    seen = rubric.rule_features([(e.prompt, e.text) for e in examples])
    judge = f"rubric:{name}:head"
    with phase(watch, "measuring", name):
        counts = [
            row
            for how, each in held_out(examples)
            for row in training.count_correct(judge, how, judged_examples(examples, states, seen, each))
        ]
    facts = {
        "model": model,
        "layer": layer,
        "form": rubric.harm_request_digest(),
        "split": training.SPLIT,
        "n": {
            "trained on": len(examples),
            "of them with a line to the judge": sum(bool(e.line) for e in examples),
        },
        "data": [training.describe_data(labels) for labels in (*spec.labels, *spec.answers)],
        "rows": rows,
        "files": data.files,
        "judges": versions(),
        "versions": {each: version(each) for each in ("torch", "tokenizers", "numpy", "scipy")},
        "measured": counts,
    }
    with phase(watch, "fitting the head", name):
        arrays: dict[str, Any] = {**fit_pairs(examples, states, seen)}
    arrays[marks.MARKS] = marks.training_marks(e.text for e in examples if not e.line)
    return training.write_weights(out / rubric.WEIGHTS, out / rubric.CARD, judge, arrays, facts)


def fit_pairs(examples: Sequence[LabelledAnswer], states: Floats, seen: RuleFeatures) -> dict[str, Floats]:
    """The arrays of both pairs of heads: the plain pair learns from no line to the judge."""
    plain = [i for i, e in enumerate(examples) if not e.line]
    arrays: dict[str, Floats] = {}
    for of, rows, by in zip(rubric.PAIRS, (plain, list(range(len(examples)))), seen.by_pair, strict=True):
        arrays |= _pair(of, [examples[i] for i in rows], states[rows], by[rows])
    refusals = _problem(examples, [target(e, "refusal") for e in examples], states, seen.margins)
    return arrays | {"refusal.slope": learned_train.fit_slope(refusals)}


def _pair(of: str, examples: Sequence[LabelledAnswer], states: Floats, margins: Floats) -> dict[str, Floats]:
    arrays = {f"{of}mean": states.mean(0), f"{of}scale": np.maximum(states.std(0), 1e-3)}
    x = rubric.scaled(arrays, of, states)
    for part, start in (("done", -PRIOR * margins), ("topic", 0 * margins)):
        problem = _problem(examples, [target(e, part) for e in examples], x, start)
        weight, bias = learned_train.fit_logistic(problem, RIDGE[part])
        arrays |= {f"{of}{part}.weight": weight, f"{of}{part}.bias": bias}
    return arrays


def target(e: LabelledAnswer, part: str) -> float | None:
    """The target of a head for an example; None if it should not learn from it.

    The head of compliance learns only from requests that are, or may be, harmful.
    """
    if part == "topic":
        return e.topic
    if part == "refusal":
        return e.refusal if e.task == "refusal" or e.family == "answers" else None
    return e.compliance if e.task and e.topic != 0 else None


def _problem(
    examples: Sequence[LabelledAnswer], targets: Sequence[float | None], x: Floats, start: Floats
) -> Regression:
    """The rows with a known target. Sets weigh about the same, and so do both classes."""
    known = [i for i, each in enumerate(targets) if each is not None]
    y = np.array([targets[i] for i in known], float)
    weight = learned_train.balanced([examples[i].set for i in known], y)
    return Regression(x[known], y, weight, start[known])


def held_out(examples: Sequence[LabelledAnswer]) -> Iterator[tuple[str, Iterator[Round]]]:
    """Rounds by grouping of the held-out rows: the rows to train on and the rows to measure.

    Rows with a line to the judge are measured in a grouping of their own, with their kind and question held
    out. The other groupings only train on them.
    """
    is_plain = [not e.line for e in examples]
    for how, kin in training.groupings(examples).items():
        rounds = training.rounds(examples, kin)
        yield how, (Round(kept, list(map(operator.and_, held, is_plain))) for kept, held in rounds)
    yield LINES_LEFT_OUT, _lines_left_out(examples)


def _lines_left_out(examples: Sequence[LabelledAnswer]) -> Iterator[Round]:
    folds = [e.fold // _FOLDS_AT_ONCE for e in examples]
    for kind, fold in itertools.product(texts().lines, sorted(set(folds))):
        kept = [e.line != kind and f != fold for e, f in zip(examples, folds, strict=True)]
        held = [e.line == kind and f == fold for e, f in zip(examples, folds, strict=True)]
        if any(held) and {"refusal", "harm"} <= {
            e.task for e, is_kept in zip(examples, kept, strict=True) if is_kept
        }:
            yield Round(kept, held)


def judged_examples(
    examples: Sequence[LabelledAnswer], states: Floats, seen: RuleFeatures, rounds: Iterable[Round]
) -> Iterator[JudgedExample]:
    for each in rounds:
        kept, held = (np.flatnonzero(rows).tolist() for rows in each)
        arrays = fit_pairs([examples[i] for i in kept], states[kept], seen.at(kept))
        logits = rubric.head_logits(arrays, states[held], seen.at(held))
        slope = float(arrays["refusal.slope"][0])
        for i, logit, is_sure in zip(held, *logits, strict=True):
            e = examples[i]
            shown = e._replace(set=f"{e.line} to the judge") if e.line else e
            refusal, harm = sigmoid(slope * float(seen.margins[i])), sigmoid(float(logit))
            yield JudgedExample(shown, refusal, harm, {"refusal": True, "harm": bool(is_sure)})


def sample_rows(examples: Sequence[LabelledAnswer], rows: int) -> list[LabelledAnswer]:
    """At most `rows` labelled rows of each set, by a hash of their text; no made-up pairs.

    The rows with a line to the judge follow.
    """
    by_set: dict[str, list[LabelledAnswer]] = {}
    for e in examples:
        if e.text.strip() and (e.task or (e.family == "answers" and e.compliance == 1 and e.topic == 0)):
            by_set.setdefault(e.set, []).append(e)
    some = [e for of in by_set.values() for e in sorted(of, key=_order)[:rows]]
    return some + with_appeals(sorted((e for e in some if target(e, "done") is not None), key=_order))


def _order(e: LabelledAnswer) -> bytes:
    return hashlib.sha256(f"{e.prompt}\0{e.text}".encode(errors="surrogatepass")).digest()


def read_states(
    reader: rubric.StateReader | None,
    of: str,
    examples: Sequence[LabelledAnswer],
    path: Path,
    say: Say,
    reached: Callable[[int], None] = lambda _: None,
) -> list[Floats | None]:
    """The state after each answer, (hidden,), from the file if it is there; None if the answer does not fit.

    reached: called with the number of answers that are read.
    Without a reader, missing states are a UsageError.
    """
    from safetensors.numpy import save

    known = _known(path)
    prefix = of.encode() + rubric.harm_request_digest().encode()
    names = [hashlib.blake2b(prefix + _order(e), digest_size=12).hexdigest() for e in examples]
    missing = [i for i, name in enumerate(names) if name not in known]
    say(f"{len(names) - len(missing)} of {len(names)} answers were read before")
    reached(len(names) - len(missing))
    if missing and reader is None:
        raise UsageError(f"{path} lacks {len(missing)} of these answers: `make head` reads them.")
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        pairs = [(examples[i].prompt, examples[i].text) for i in some]
        read = reader.states(pairs) if reader else []
        empty = np.zeros(0, np.float16)
        known |= {
            names[i]: empty if s is None else s.astype(np.float16) for i, s in zip(some, read, strict=True)
        }
        write_atomic(path, save(known))
        n_read = len(names) - len(missing) + start + len(some)
        reached(n_read)
        say(f"read {n_read} of {len(names)} answers")
    return [known[name].astype(float) if known[name].size else None for name in names]


def _known(path: Path) -> dict[str, Any]:
    """The stored states. Raises Damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        states = load(path.read_bytes()) if path.is_file() else {}
    except SafetensorError as error:
        raise Damaged(f"{path}: {first_line(error)}. {_DELETE}") from None
    sizes = {state.shape for state in states.values() if state.size}
    if len(sizes) > 1 or not all(np.isfinite(state).all() for state in states.values()):
        raise Damaged(f"{path}: holds what are no states of one model. {_DELETE}")
    return dict(states)
