"""The labelled answers that the judge `learned` is trained and measured on, as a TOML file names them.

Promises: every row knows its set, its family of sets and its fold. Rows about one question share a fold, so
that no question is on both sides of a split. A malformed file is a BadInput with file and line.
Leaves to others: the sets themselves (none is shipped), and training (judges/learned.py).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from heredity.core import readers
from heredity.core.errors import BadInput, code_of, did_you_mean
from heredity.core.readers import in_words, toml_line_of, toml_of
from heredity.core.sanitize import clean_text
from heredity.redteam.judges import check_positive, is_answer, rules

FOLDS = 5


class Texts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of texts from which answers are made on purpose. lines: by kind, to the judge itself."""

    openers: tuple[str, ...]
    denials: tuple[str, ...]
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]
    personas: tuple[tuple[str, str], ...]
    boasts: tuple[str, ...]
    advice: tuple[str, ...]
    talk: tuple[str, ...]
    morals: tuple[str, ...]
    lines: dict[str, tuple[str, ...]]


@cache
def texts() -> Texts:
    """The texts of the package."""
    return msgspec.convert(toml_of(Path(__file__).parent / "texts.toml"), Texts)


class RowFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows whose `column` begins with `starts`."""

    column: str
    starts: str


class TrainingLabels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answers with labels. `label`: a column per rater; `harmful`: the requests, or which of them.

    `model`: columns that together name the model that answered; "file" is the name of the row's file.
    """

    name: str
    family: str
    licence: str
    files: tuple[str, ...]
    task: Literal["refusal", "harm"]
    response: str
    label: tuple[str, ...]
    positive: tuple[str, ...]
    prompt: str = ""
    group: str = ""  # identifies a question; the prompt if left out
    harmful: bool | RowFilter | Literal["unknown"] = True
    refused: str = (
        ""  # a column that says whether it refused; rows where both it and the label say so are left out
    )
    model: tuple[str, ...] = ()


class AnswerSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Harmless requests that were answered; at most `rows` of them. A dotted column reads a nested field."""

    name: str
    licence: str
    files: tuple[str, ...]
    prompt: str
    response: str
    rows: int = 300


class RequestSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Harmful requests without an answer: they are paired with refusals of other requests."""

    name: str
    licence: str
    files: tuple[str, ...]
    prompt: str


class JudgeTrainingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TOML file for `heredity judges train`."""

    labels: tuple[TrainingLabels, ...]
    answers: tuple[AnswerSet, ...] = ()
    requests: tuple[RequestSet, ...] = ()
    seed: int = 0
    steps: int = 360  # of each training of `learned`
    # Families that are left out together, one training each; "answers" are the harmless ones.
    rounds: tuple[tuple[str, ...], ...] = ()
    has_fold: bool = False  # one more training, without a fifth of the questions


class LabelledAnswer(NamedTuple):
    """An answer and its known labels, each from 0 to 1, or None."""

    set: str
    family: str
    fold: int
    prompt: str
    text: str
    refusal: float | None
    compliance: float | None
    topic: float | None  # is the request, or the answer, harmful?
    task: str = ""  # "refusal" or "harm": which of them a person gave; "" for none
    line: str = ""  # the kind of line to the judge that was added (judges/head.py)
    model: str = ""  # that answered, where a set of several models names it

    @property
    def harm(self) -> float | None:
        """The human label of harm."""
        return self.compliance if self.task == "harm" else None


class LabelledAnswers(NamedTuple):
    """Everything read: the examples, the SHA-256 of each file, and the requests without an answer."""

    examples: list[LabelledAnswer]
    files: dict[str, str]
    asked: list[str]


def read_spec(path: Path) -> JudgeTrainingSpec:
    """The TOML file. Raises BadInput with the line."""
    try:
        return msgspec.convert(toml_of(path), JudgeTrainingSpec)
    except msgspec.ValidationError as error:
        line = toml_line_of(path, error)
        raise BadInput(path, in_words(str(error)), line, code=code_of(error)) from None


def read_examples(spec: JudgeTrainingSpec, roots: Sequence[Path]) -> LabelledAnswers:
    """The examples of a spec, each file from the first of `roots` that holds it; made-up pairs come last."""
    files: dict[str, str] = {}

    def rows(names: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            path = next((root / name for root in roots if (root / name).is_file()), None)
            if path is None:
                raise BadInput(
                    roots[0] / name, "no such file here or below another --root", code="unreadable-file"
                )
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            yield from _with_columns(path, columns)

    examples: list[LabelledAnswer] = []
    for labels in spec.labels:
        where = labels.harmful.column if isinstance(labels.harmful, RowFilter) else ""
        single = (labels.prompt, labels.response, labels.group, labels.refused, where)
        named = (*single, *labels.label, *labels.model)
        examples += _all_labelled(labels, rows(labels.files, [*filter(None, named)]))
    for answers in spec.answers:
        answered = [*rows(answers.files, (answers.prompt, answers.response))][: answers.rows]
        pairs = ((_reach(row, answers.prompt), _reach(row, answers.response)) for row in answered)
        examples += [
            LabelledAnswer(answers.name, "answers", fold(p), p, text, 0, 1, 0)
            for p, text in pairs
            if text.strip()
        ]
    asked = [str(row[each.prompt]) for each in spec.requests for row in rows(each.files, (each.prompt,))]
    made = _pairs(examples, asked, random.Random(spec.seed))
    return LabelledAnswers(examples + made, files, asked)


def fold(question: str) -> int:
    """The fold of a question, the same on every machine."""
    return (
        int.from_bytes(hashlib.sha256(question.strip().lower()[:80].encode("utf-8", "replace")).digest())
        % FOLDS
    )


def _with_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Its rows. A missing column is an error: a misspelt one would turn every label into a no."""
    for line, cells in readers.rows(path):
        row = {"file": path.stem, **cells}
        for column in columns:
            first = column.split(".")[0]
            if column not in row and first not in row:
                hint = did_you_mean(first, map(str, row))
                raise BadInput(path, f"no column '{column}'.{hint}", line, code="unknown-key")
        yield row


def _all_labelled(labels: TrainingLabels, rows: Iterator[dict[str, Any]]) -> list[LabelledAnswer]:
    """The examples of a set, of the rows that have a label.

    Raises UsageError if a value that should be positive is not any row's label.
    """
    known, examples = set(), []
    for row in rows:
        given = (row[column] for column in labels.label)
        votes = [str(each) for each in given if each is not None and str(each).strip()]
        known |= set(votes)
        if labels.refused and str(row[labels.refused]) == votes[0]:
            continue
        if votes:
            examples.append(_labelled(labels, row, [vote in labels.positive for vote in votes]))
    check_positive(known, labels.positive, labels.name)
    return examples


def _labelled(labels: TrainingLabels, row: dict[str, Any], votes: list[bool]) -> LabelledAnswer:
    prompt = _reach(row, labels.prompt) if labels.prompt else ""
    share = sum(votes) / len(votes)
    at = fold(str(row[labels.group]) if labels.group else prompt)
    topic = _topic(labels, row)
    known = topic if prompt or share >= 0.5 else None  # an unknown request, and an answer that says little
    text = _reach(row, labels.response)
    is_refusal, model = labels.task == "refusal", ", ".join(str(row[column]) for column in labels.model)
    refusal, compliance = (share, 1 - share) if is_refusal else (None, share)
    return LabelledAnswer(
        labels.name, labels.family, at, prompt, text, refusal, compliance, known, labels.task, model=model
    )


def _topic(labels: TrainingLabels, row: dict[str, Any]) -> float | None:
    if isinstance(labels.harmful, RowFilter):
        return float(str(row[labels.harmful.column]).startswith(labels.harmful.starts))
    return None if labels.harmful == "unknown" else float(labels.harmful)


def _pairs(examples: list[LabelledAnswer], asked: list[str], rng: random.Random) -> list[LabelledAnswer]:
    """Refusals under other requests, harmless answers under harmful requests: only the answer decides."""
    refusals = [e for e in examples if e.task == "refusal" and e.refusal == 1 and e.topic is not None]
    answers = [e for e in examples if e.family == "answers"]
    made: list[LabelledAnswer] = []
    some = rng.sample(answers, min(120, len(answers)))
    if refusals:
        made += [_under(prompt, rng.choice(refusals), refusal=1, topic=1) for prompt in asked]
        made += [_under(other.prompt, rng.choice(refusals), refusal=1, topic=0) for other in some]
    if asked:
        made += [_under(rng.choice(asked), other, refusal=None, topic=1) for other in some]
    return made


def _under(prompt: str, answer: LabelledAnswer, refusal: float | None, topic: float) -> LabelledAnswer:
    return answer._replace(prompt=prompt, refusal=refusal, compliance=0.0, topic=topic, task="")


def _reach(row: dict[str, Any], column: str) -> str:
    value: Any = row
    for key in column.split("."):
        if isinstance(value, list):
            value = value[int(key)] if key.isdigit() and int(key) < len(value) else ""
        else:
            value = value.get(key, "") if isinstance(value, dict) else ""
    return clean_text(value if isinstance(value, str) else str(value))


# --- cross-validation ---------------------------------------------------------------------------------
# The weights of a round never saw the held-out rows, their answers under another question, or a made-up pair
# with one of their questions. The judge and `rules` are counted on the same rows, decided as a verdict is.

FIVE_FOLDS, ONE_FOLD, LEFT_OUT = "five folds", "one fold", "sets left out"
SPLIT = (
    "the shipped weights are trained on all rows; every figure is of weights of the same recipe that were"
    " trained without the rows measured: without a fifth of the questions, or without a family of sets"
)
SPLIT_FAMILIES = (
    "the shipped weights are trained on all rows; every figure is of weights of the same recipe that were"
    " trained without the family of sets, or a fifth of the questions, and near copies of these answers"
)


class Round(NamedTuple):
    """The examples that weights are trained on, and those that they are measured on."""

    kept: list[bool]
    held: list[bool]


class JudgedExample(NamedTuple):
    """An example and a judge's probabilities; `is_decided` by task: far enough from one half to decide."""

    example: LabelledAnswer
    refusal: float
    harm: float
    is_decided: dict[str, bool]


def groupings(examples: Sequence[LabelledAnswer]) -> dict[str, list[str]]:
    """Groupings of held-out rows: for each, the group that is left out together with an example."""
    families = [e.set if e.family == "answers" else e.family for e in examples]
    return {FIVE_FOLDS: [str(e.fold) for e in examples], LEFT_OUT: families}


def rounds(examples: Sequence[LabelledAnswer], kin: Sequence[str]) -> Iterator[Round]:
    """One round for each group that holds labels. A group that a task needs for its labels is skipped."""
    labelled = {k for k, e in zip(kin, examples, strict=True) if truths(e)}
    for each in sorted(labelled):
        mine = [e for k, e in zip(kin, examples, strict=True) if k == each]
        theirs, answers = {e.prompt for e in mine if e.prompt}, {e.text for e in mine}
        kept = [
            k != each and e.text not in answers and not (e.task == "" and e.prompt in theirs)
            for k, e in zip(kin, examples, strict=True)
        ]
        left = {e.task for is_kept, e in zip(kept, examples, strict=True) if is_kept}
        if {"refusal", "harm"} <= left:
            yield Round(kept, [k == each for k in kin])


def truths(e: LabelledAnswer) -> list[tuple[str, str, bool]]:
    """The facts about an answer, for each table row it counts in: task, name of the set or model, truth.

    Harm follows from a human refusal label if it is known which requests are harmful: an answer to a harmless
    request does no harm.
    """
    if e.task == "harm":
        names = [e.set, f"{e.set.partition(':')[0]}: {e.model}"] if e.model else [e.set]
        return [("harm", name, (e.harm or 0.0) >= 0.5) for name in names]
    is_refusal = (e.refusal or 0.0) >= 0.5
    if e.task == "refusal":
        facts = [("refusal", e.set, is_refusal)]
        if e.topic is not None:
            facts.append(("harm", f"{e.set}, as harm", e.topic >= 0.5 and not is_refusal))
            if e.topic >= 0.5:
                facts.append(("harm", f"{e.set}, unsafe prompts", not is_refusal))
            elif not is_refusal:
                facts.append(("harm", f"{e.set}, safe prompts that were answered", False))
        return facts
    is_answered = e.family == "answers" and e.compliance == 1 and e.topic == 0
    return [("harm", f"{e.set}, harmless", False)] if is_answered else []


def count_correct(judge: str, how: str, all_said: Iterable[JudgedExample]) -> Iterator[dict[str, Any]]:
    """Per set and task the counts of a judge, and of `rules` on the same rows.

    A text that is not an answer to judge, or on which the judge is unsure, counts as unclear for both.
    """
    by_table: dict[tuple[str, str, str], list[tuple[bool, bool | None]]] = {}
    seen = set()
    for judged in all_said:
        e = judged.example
        if (e.set, e.prompt, e.text) in seen:
            continue
        seen.add((e.set, e.prompt, e.text))
        manner = rules.manner(e.prompt, e.text)
        for task, name, truth in truths(e):
            theirs = manner == ("refusal" if task == "refusal" else "compliance")
            is_positive = (judged.refusal if task == "refusal" else judged.harm) >= 0.5
            is_decided = is_answer(e.prompt, e.text) and judged.is_decided[task]
            for who, is_found in {judge: is_positive, "rules": theirs}.items():
                row = (truth, is_found if is_decided else None)
                by_table.setdefault((who, task, name), []).append(row)
    for (who, task, name), rows in by_table.items():
        decided = [(truth, is_found) for truth, is_found in rows if is_found is not None]
        right = {kind: [t == s for t, s in decided if t == kind] for kind in (True, False)}
        yield {
            "judge": who, "task": task, "labels": f"{name} ({how})",
            "sens_k": sum(right[True]), "sens_n": len(right[True]),
            "spec_k": sum(right[False]), "spec_n": len(right[False]), "n_unclear": len(rows) - len(decided),
        }  # fmt: skip


def describe_data(item: Any) -> dict[str, Any]:
    """A set of labels, answers or requests, as a card names it."""
    task = item.task if isinstance(item, TrainingLabels) else "pairs with known answers"
    return {"name": item.name, "licence": item.licence, "files": item.files, "task": task}


def write_weights(
    weights: Path, card: Path, judge: str, arrays: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the weights first, then the card with their hash; returns the card."""
    from safetensors.numpy import save

    card.parent.mkdir(parents=True, exist_ok=True)
    raw = save({name: _plain(a) for name, a in sorted(arrays.items())})
    weights.write_bytes(raw)
    file = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    written = {"judge": judge, "licence": "Apache-2.0", "weights": file, **facts}
    card.write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
    return written


def _plain(array: Any) -> Any:
    """Floats in 32 bits; half floats and marks of answers unchanged."""
    is_kept = array.dtype in (np.uint32, np.float16)
    return np.ascontiguousarray(array, array.dtype if is_kept else np.float32)
