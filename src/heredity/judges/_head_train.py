"""Learns the head of `rubric:MODEL:head` on labelled answers, and measures it on what was held out.

Promises: every figure of the card is of rows that the weights behind it were not trained on; states that were
read are kept beside the result as they come, so that a run that was stopped reads none twice.
Leaves to others: the labels (_learned_data.py), rounds and counts (_trained.py), the fit (_learned_train.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from heredity.judges import _head, _learned_data, _learned_train, _rubric_form, _trained
from heredity.judges._choice import Models
from heredity.judges._learned_card import source_hash
from heredity.judges._learned_data import Example
from heredity.judges._learned_model import PRIOR, Floats, sigmoid
from heredity.judges._learned_train import Problem
from heredity.judges._trained import Said
from heredity.store import write_atomic

Say = Callable[[str], None]
DEPTH = 0.64  # of a model's layers: where its state is read; 14 to 22 of 28 were tried
RIDGE = {"done": 2.0, "topic": 1.0}
ROWS = 500  # of a set at most: reading one takes about half a second of two cores
STATES = "states.safetensors"
_AT_ONCE = 64  # answers between two writes


def train(
    path: Path, roots: Sequence[Path], out: Path, name: str, models: Models, say: Say, rows: int = ROWS
) -> dict[str, Any]:
    """Read states of the model `name`, learn a head, measure it, write both into `out`; the card.

    Raises BadInput, Unavailable, UsageError for a model whose states cannot be read.
    """
    spec = _learned_data.read_spec(path)
    data = _learned_data.read(spec, roots)
    examples = _drawn(data.examples, rows)
    out.mkdir(parents=True, exist_ok=True)
    engine, model = models.load(name), models.identify(name)
    layer = round(DEPTH * int(getattr(engine, "n_layers", 1)))
    try:
        read = _states(_head.Reader(engine, layer), f"{model} {layer}", examples, out / STATES, say)
    finally:
        engine.close()
    examples = [e for e, state in zip(examples, read, strict=True) if state is not None]
    states = np.array([state for state in read if state is not None])
    margins = np.array([_head.margin_of((e.prompt, e.text)) for e in examples])
    judge = f"rubric:{name}:head"
    facts = {
        "model": model,
        "layer": layer,
        "form": _rubric_form.digest(),
        "split": _trained.SPLIT,
        "n": {"trained on": len(examples)},
        "data": [_trained.about(labels) for labels in (*spec.labels, *spec.answers)],
        "rows": rows,
        "files": data.files,
        "source": source_hash(),
        "versions": {each: version(each) for each in ("torch", "tokenizers", "numpy", "scipy")},
        "measured": [
            row
            for how, kin in _trained.kins(examples).items()
            for row in _trained.counted(judge, how, _said(examples, states, margins, kin))
        ],
    }
    arrays = fit(examples, states, margins)
    return _trained.write(out / _head.WEIGHTS, out / _head.CARD, judge, arrays, facts)


def fit(examples: Sequence[Example], states: Floats, margins: Floats) -> dict[str, Floats]:
    """The arrays of a head."""
    arrays = {"state.mean": states.mean(0), "state.scale": np.maximum(states.std(0), 1e-3)}
    x = _head.scaled(arrays, states)
    for part, start in (("done", -PRIOR * margins), ("topic", 0 * margins)):
        problem = _problem(examples, [target(e, part) for e in examples], x, start)
        arrays[f"{part}.weight"], arrays[f"{part}.bias"] = _learned_train.fit_logistic(problem, RIDGE[part])
    refusals = _problem(examples, [target(e, "refusal") for e in examples], x, margins)
    return arrays | {"refusal.slope": _learned_train.fit_slope(refusals)}


def target(e: Example, part: str) -> float | None:
    """What a head should say of an example; None where it should not learn from it.

    What was done is learned after requests that are, or may be, harmful alone.
    """
    if part == "topic":
        return e.topic
    if part == "refusal":
        return e.refusal if e.task == "refusal" or e.family == "answers" else None
    return e.compliance if e.task and e.topic != 0 else None


def _problem(
    examples: Sequence[Example], targets: Sequence[float | None], x: Floats, start: Floats
) -> Problem:
    """The rows whose target is known. Sets weigh about alike, and both classes the same."""
    known = [i for i, each in enumerate(targets) if each is not None]
    y = np.array([targets[i] for i in known], float)
    weight = _learned_train.set_weights([examples[i].set for i in known], y)
    for chosen in (y >= 0.5, y < 0.5):
        weight[chosen] /= max(1e-9, weight[chosen].sum())
    return Problem(x[known], y, weight / weight.sum(), start[known])


def _said(examples: Sequence[Example], states: Floats, margins: Floats, kin: Sequence[str]) -> Iterator[Said]:
    for each in _trained.rounds(examples, kin):
        kept, held = (np.flatnonzero(rows).tolist() for rows in each)
        arrays = fit([examples[i] for i in kept], states[kept], margins[kept])
        found = _head.logits(arrays, states[held], margins[held])
        slope = float(arrays["refusal.slope"][0])
        for i, logit in zip(held, found, strict=True):
            refusal, harm = sigmoid(slope * float(margins[i])), sigmoid(float(logit))
            yield Said(examples[i], refusal, harm, {"refusal": True, "harm": True})


def _drawn(examples: Sequence[Example], rows: int) -> list[Example]:
    """At most so many labelled rows of each set, by a hash of their text; no pairs that were made up."""
    found: dict[str, list[Example]] = {}
    for e in examples:
        if e.text.strip() and (e.task or (e.family == "answers" and e.compliance == 1 and e.topic == 0)):
            found.setdefault(e.set, []).append(e)
    return [e for of in found.values() for e in sorted(of, key=_order)[:rows]]


def _order(e: Example) -> bytes:
    return hashlib.sha256(f"{e.prompt}\0{e.text}".encode(errors="surrogatepass")).digest()


def _states(
    reader: _head.Reader, of: str, examples: Sequence[Example], path: Path, say: Say
) -> list[Floats | None]:
    """The state behind each answer, from the file where it is there."""
    from safetensors.numpy import load, save

    known = load(path.read_bytes()) if path.is_file() else {}
    names = [_key(of, e) for e in examples]
    missing = [i for i, name in enumerate(names) if name not in known]
    say(f"{len(names) - len(missing)} of {len(names)} answers were read before")
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        found = reader.states((examples[i].prompt, examples[i].text) for i in some)
        empty = np.zeros(0, np.float16)
        known |= {
            names[i]: empty if s is None else s.astype(np.float16) for i, s in zip(some, found, strict=True)
        }
        write_atomic(path, save(known))
        say(f"read {len(names) - len(missing) + start + len(some)} of {len(names)} answers")
    return [known[name].astype(float) if known[name].size else None for name in names]


def _key(of: str, e: Example) -> str:
    return hashlib.blake2b(
        of.encode() + _rubric_form.digest().encode() + _order(e), digest_size=12
    ).hexdigest()
