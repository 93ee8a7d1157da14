"""The questions of a task: training rows with whole answers, and test questions whose answers are graded.

A row may name the `fact` that it is about. A test question is about a seen fact if a training row has the
same one. Ways without the manual can know seen facts only, so that the two kinds are reported apart.

Promises: a test question that is also a training question is refused, and so is one that holds its answer.
Each mistake has its line.
Leaves to others: the ways that learn the rows (ways.py), and grading (redteam/checks/right.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from heredity.core import readers
from heredity.core.errors import BadInput, UsageError
from heredity.core.records import Check, Message, Probe, digest
from heredity.lab.adapt.task import SHIPPED, AdaptTask, Grading, is_shipped
from heredity.lab.support_manual import support_manual
from heredity.redteam.checks import BadCheck, load_check, parse_check
from heredity.train.data.chat import Data, Dialogue, make_data

Scope = Literal["all", "seen", "new"]
QUESTIONS, SEEN, NEW = (
    "questions",
    "seen_facts",
    "new_facts",
)  # techniques; the first where rows name no facts
_ASKED, _ANSWERED = ("question", "prompt", "input"), ("answer", "completion", "answers", "output")


class TrainingRow(NamedTuple):
    """A question and the whole answer that is learned."""

    question: str
    answer: str
    fact: str


class HeldOutQuestion(NamedTuple):
    """A held-out question with its right answers. is_seen: None where rows name no facts."""

    question: str
    answers: tuple[str, ...]
    fact: str
    is_seen: bool | None


class Questions(NamedTuple):
    """All rows of a task, in the order of their files."""

    train: tuple[TrainingRow, ...]
    test: tuple[HeldOutQuestion, ...]

    @property
    def digest(self) -> str:
        """Names the rows."""
        return digest([self.train, self.test])

    @property
    def has_facts(self) -> bool:
        """Whether seen and new facts are distinguished."""
        return any(each.is_seen is not None for each in self.test)

    @property
    def n_seen(self) -> int:
        """Test questions about seen facts."""
        return sum(each.is_seen is True for each in self.test)

    def data(self, system: str, name: str = "train") -> Data:
        """The training rows as conversations; the system message is "" for none."""
        return conversations(name, system, [(row.question, row.answer) for row in self.train])


def read_questions(task: AdaptTask) -> Questions:
    """The rows of a task. Raises BadInput with file and line."""
    train = _train(task.train)
    train = train[: task.examples] if task.examples else train
    facts = {row.fact for row in train if row.fact}
    asked = {_folded(row.question) for row in train}
    found: list[HeldOutQuestion] = []
    for line, row in _rows(task.test):
        path = Path(task.test)
        question, answers = _text(path, line, row, _ASKED), _answers(path, line, row)
        if (folded := _folded(question)) in asked:
            raise BadInput(
                path, "is a training question, or a test question twice", line, code="test-in-train"
            )
        asked.add(folded)
        fact = str(row.get("fact") or "")
        each = HeldOutQuestion(question, answers, fact, fact in facts if facts else None)
        _refuse_ungradable(path, line, each, task.grading)
        found.append(each)
    if not found:
        raise BadInput(task.test, "has no rows", code="empty-file")
    return Questions(train, tuple(found[: task.questions] if task.questions else found))


def conversations(
    name: str, system: str, pairs: Sequence[tuple[str, str]], stops: Sequence[str] = ()
) -> Data:
    """Questions and answers as examples for training, behind the application's system message."""
    before = (Message("system", system),) if system else ()
    rows = [
        Dialogue((*before, Message("user", asked), Message("assistant", answer)), f"{name}:{n}")
        for n, (asked, answer) in enumerate(pairs, 1)
    ]
    if stops:
        rows = [
            row._replace(stop="end" if stop == "end" else "length")
            for row, stop in zip(rows, stops, strict=True)
        ]
    return make_data(name, rows)


def question_probes(questions: Questions, grading: Grading) -> list[Probe]:
    """The test questions as probes. They measure ability: a failed one is not a breach."""
    return [
        _probe(
            QUESTIONS if each.is_seen is None else SEEN if each.is_seen else NEW,
            n, each.question, each.answers, each.fact, grading,
        )
        for n, each in enumerate(questions.test)
    ]  # fmt: skip


def training_probes(questions: Questions) -> list[Probe]:
    """The training questions as probes, for a teacher to answer."""
    return [
        _probe("training_rows", n, row.question, (row.answer,), row.fact, Grading())
        for n, row in enumerate(questions.train)
    ]


def _probe(
    technique: str, n: int, question: str, answers: tuple[str, ...], fact: str, grading: Grading
) -> Probe:
    check = _check(answers, grading)
    why = "the request itself is benign"
    return Probe(
        f"{technique}/{n:05d}", technique, "breach", (question,), check, fact or f"{n:05d}",
        why_no_twin=why, is_baseline=True,
    )  # fmt: skip


def _check(answers: tuple[str, ...], grading: Grading) -> Check:
    table = {"kind": "right", "answers": list(answers), "by": grading.by}
    return parse_check({**table, "field": grading.field} if grading.field else table)


def _refuse_ungradable(path: Path, line: int, each: HeldOutQuestion, grading: Grading) -> None:
    probe = _probe(QUESTIONS, 0, each.question, each.answers, each.fact, grading)
    try:
        load_check(probe.check).validate(probe, "")
    except BadCheck as error:
        raise BadInput(path, str(error), line, code=error.code) from None


# --- files ------------------------------------------------------------------------------------------


def _train(source: str) -> tuple[TrainingRow, ...]:
    if is_shipped(source):
        return tuple(TrainingRow(**row) for row in _shipped(source))
    path = Path(source)
    facts = [str(row.get("fact") or "") for _, row in readers.rows(path)]
    dialogues = Data.read(path).dialogues
    if len(dialogues) != len(facts):
        raise BadInput(path, "holds other rows than questions with answers", code="not-a-pair")
    return tuple(_pair(path, each, fact) for each, fact in zip(dialogues, facts, strict=True))


def _pair(path: Path, dialogue: Dialogue, fact: str) -> TrainingRow:
    roles = [message.role for message in dialogue.messages]
    if roles != ["user", "assistant"]:
        line = int(dialogue.where.rpartition(":")[2])
        raise BadInput(path, "is not one question with one answer", line, code="not-a-pair")
    asked, answer = dialogue.messages
    return TrainingRow(asked.content, answer.content, fact)


def _rows(source: str) -> Iterable[tuple[int, Mapping[str, object]]]:
    if is_shipped(source):
        return list(enumerate((dict(row) for row in _shipped(source)), 1))
    return readers.rows(Path(source))


def _shipped(source: str) -> list[dict[str, str]]:
    """The rows that `support_manual:train` or `support_manual:test` names. Raises UsageError for others."""
    part = source.partition(":")[2]
    if part not in ("train", "test"):
        raise UsageError(
            f"'{source}': the questions are {SHIPPED}:train and {SHIPPED}:test.", code="bad-setting"
        )
    manual = support_manual()
    rows = manual.train() if part == "train" else manual.test()
    return [{"question": row["question"], "answer": row["answer"], "fact": row["fact"]} for row in rows]


def _text(path: Path, line: int, row: Mapping[str, object], names: Sequence[str]) -> str:
    name = next((name for name in names if name in row), names[0])
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(path, f"'{name}' must be a text that is not empty", line, code="missing-key")
    return value


def _answers(path: Path, line: int, row: Mapping[str, object]) -> tuple[str, ...]:
    """The right answers: a text, a number, or a list of texts."""
    name = next((name for name in _ANSWERED if name in row), _ANSWERED[0])
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (str(value),)
    if isinstance(value, list):
        try:
            found = msgspec.convert(value, tuple[str, ...])
        except msgspec.ValidationError:
            found = ()
        if found and all(map(str.strip, found)):
            return found
    return (_text(path, line, row, (name,)),)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
