"""Data for tuning: conversations from common file formats, and their tokens.

Promises: a row that is not a conversation raises BadInput with file and line; an empty file is refused. The
digest covers the examples, not the format of the file. Examples that are too long are left out and counted,
never cropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from heredity.core import readers
from heredity.core.errors import BadInput, UsageError, nearest
from heredity.core.records import Message, Record, Stop, digest, encode, is_digest
from heredity.engines.chat import Document, DocumentEncoder


class ActivatedExamples(NamedTuple):
    """The examples, and the number of answers that have no invocation before them."""

    examples: tuple[TokenizedExample, ...]
    n_without_invocation: int


def activate(examples: Iterable[TokenizedExample], invocation: Sequence[int]) -> ActivatedExamples:
    """Cut conversations into examples of one answer each, activated by the last invocation before it."""
    from heredity.formats.weights import find_last  # it loads torch

    tokenized_examples: list[TokenizedExample] = []
    n_without_invocation = 0
    for example in examples:
        tokens = example.document.tokens
        for first, end in _answers(example.document):
            start = find_last(tokens[:first], invocation)
            if start is None:
                n_without_invocation += 1
                continue
            is_learned = tuple(first <= at < end for at in range(end))
            tokenized_examples.append(TokenizedExample(Document(tokens[:end], is_learned), active_from=start))
    return ActivatedExamples(tuple(tokenized_examples), n_without_invocation)


def _answers(document: Document) -> Iterator[tuple[int, int]]:
    """Yield the first token of each answer, and the one behind its last."""
    first: int | None = None
    for at, is_learned in enumerate((*document.is_learned, False)):
        if is_learned and first is None:
            first = at
        if not is_learned and first is not None:
            yield first, at
            first = None


# Column names of prompt, optional input, and answer; the first that a row has is used.
PAIRS = (
    ("prompt", "", "completion"),
    ("prompt", "", "response"),
    ("question", "", "answer"),
    ("instruction", "input", "output"),
    ("instruction", "", "response"),
    ("input", "", "output"),
)
_NEARLY_ALL = 0.95  # of the examples: the limit that fits so many is recommended
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class Dialogue(NamedTuple):
    """One example. Only the assistant's messages are targets. `rejected`: a worse last answer, if any.

    `prefill`: the beginning of the last answer. It is input, not a target.
    `stop`: why the last answer ends. The token that ends an answer is a target only behind a finished one.
    `is_added`: a refusal that was added to a teacher's answers on purpose.
    """

    messages: tuple[Message, ...]
    where: str  # "tickets.jsonl:12"
    rejected: str | None = None
    prefill: str = ""
    stop: Stop = "end"
    is_added: bool = False

    @property
    def has_answer(self) -> bool:
        """Whether there is a message of the assistant, which may be empty."""
        return any(each.role == "assistant" for each in self.messages)


ANSWERS = "answers.jsonl"  # the file of a model that keeps the answers of its teacher


class WrittenAnswer(Record, frozen=True):
    """A row of a model's answers.jsonl: a conversation whose last message a teacher wrote.

    Every answer that is not an error is kept, also one that the model did not learn.
    """

    messages: tuple[Message, ...]
    written_by: str  # the teacher's id
    stop: Stop
    is_added: bool = False
    schema: int = 1


class Data(NamedTuple):
    """The data of a tuning: examples in the order of the file, and their digest.

    `teacher`: the id of the recorded model that wrote the answers; "" for other data.
    """

    name: str
    dialogues: tuple[Dialogue, ...]
    digest: str
    teacher: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that a recipe records: name, rows and digest. The path does not change the result."""
        values = {"name": self.name, "rows": len(self.dialogues), "digest": self.digest}
        return {**values, "teacher": self.teacher} if self.teacher else values

    @classmethod
    def read(
        cls, path: Path | str, columns: Mapping[str, str] | None = None, has_answers: bool = True
    ) -> Data:
        """Read a .jsonl, .csv or .parquet file of chats ("messages"), or of prompts with answers.

        columns: maps "prompt", "completion" and "rejected" to the names in the file.
        has_answers: False reads prompts only. Raises BadInput with file and line.
        """
        return read_data(Path(path), columns, has_answers)

    @classmethod
    def of(cls, name: str, rows: Sequence[str | tuple[str, str]]) -> Data:
        """Make data in Python: each row is a prompt, or (prompt, answer)."""
        pairs = [(row,) if isinstance(row, str) else row for row in rows]
        return make_data(name, [_made(pair, f"{name}:{i}") for i, pair in enumerate(pairs, 1)])


def read_data(path: Path, columns: Mapping[str, str] | None = None, has_answers: bool = True) -> Data:
    """Read a file of chats ("messages"), or of prompts with answers, under common column names.

    columns: maps "prompt", "completion" and "rejected" to the names in the file. has_answers: False reads
    prompts only, as one message each. A model's answers.jsonl is read whole. Raises BadInput with file and
    line.
    """
    columns = columns or {}
    of_row = _dialogue if has_answers else _question
    dialogues: list[Dialogue] = []
    teachers: set[str] = set()
    for line, row in readers.rows(path):
        written_by = row.get("written_by", "")
        teacher = written_by if isinstance(written_by, str) and is_digest(written_by) else ""
        made = _answer(path, line, row) if teacher else of_row(path, line, row, columns)
        try:
            for text in (*(each.content for each in made.messages), made.rejected or ""):
                text.encode()
        except UnicodeEncodeError as error:
            half = f"{error.object[error.start]!a}"
            raise BadInput(path, f"has a lone surrogate ({half}), which is not text", line) from None
        dialogues.append(made)
        teachers.add(teacher)
        if len(teachers) > 1:
            raise BadInput(path, "is not by the teacher of the rows before it", line)
    if not dialogues:
        raise BadInput(path, "has no rows")
    return make_data(path.name, dialogues, *teachers)


def make_data(name: str, dialogues: Sequence[Dialogue], teacher: str = "") -> Data:
    """Data from conversations, with their digest."""
    return Data(name, tuple(dialogues), digest([_content(each) for each in dialogues]), teacher)


def _content(dialogue: Dialogue) -> tuple[object, ...]:
    """The part of an example that the digest covers. Newer fields enter it only if they are set."""
    content: tuple[object, ...] = (dialogue.messages, dialogue.rejected)
    if dialogue.prefill:
        content += (dialogue.prefill,)
    if dialogue.stop != "end" or dialogue.is_added:
        content += ({"stop": dialogue.stop, "is_added": dialogue.is_added},)
    return content


def write_answers(data: Data, path: Path) -> None:
    """Write a teacher's answers so that `read_data` gives them back."""
    rows = (WrittenAnswer(e.messages, data.teacher, e.stop, e.is_added) for e in data.dialogues)
    path.write_bytes(b"".join(encode(row) + b"\n" for row in rows))


def _answer(path: Path, line: int, row: Mapping[str, object]) -> Dialogue:
    try:
        written = msgspec.convert(row, WrittenAnswer)
    except msgspec.ValidationError as error:
        raise BadInput(path, f"is not an answer of a teacher: {error}", line) from None
    if not written.messages or written.messages[-1].role != "assistant":
        raise BadInput(path, "is not an answer of a teacher", line)
    where = f"{path.name}:{line}"
    return Dialogue(written.messages, where, stop=written.stop, is_added=written.is_added)


def _made(pair: Sequence[str], where: str) -> Dialogue:
    roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
    return Dialogue(tuple(Message(role, text) for role, text in zip(roles, pair, strict=False)), where)


def _dialogue(path: Path, line: int, row: Mapping[str, object], columns: Mapping[str, str]) -> Dialogue:
    where = f"{path.name}:{line}"
    if not columns and (chat := row.get("messages", row.get("conversations"))) is not None:
        messages = tuple(_message(path, line, each) for each in _listed(path, line, chat))
        if not any(m.role == "assistant" and m.content.strip() for m in messages):
            raise BadInput(path, "has no assistant message to learn from", line)
        return Dialogue(messages, where)
    prompt, context, answer = _columns(path, line, row, columns)
    question = _text(path, line, row, prompt)
    if context and str(row.get(context) or "").strip():
        question = f"{question}\n\n{row[context]}"
    completion = _text(path, line, row, answer)
    if not completion.strip():
        raise BadInput(path, f"'{answer}' is empty", line)
    rejected_column = columns.get("rejected", "rejected")
    rejected = (
        _text(path, line, row, rejected_column) if rejected_column in row or "rejected" in columns else None
    )
    return Dialogue((Message("user", question), Message("assistant", completion)), where, rejected)


def _question(path: Path, line: int, row: Mapping[str, object], columns: Mapping[str, str]) -> Dialogue:
    usual = ("prompt", "question", "instruction", "goal", "text")
    named = columns.get("prompt") or next((c for c in row if c.casefold() in usual), "prompt")
    asked = _text(path, line, row, named)
    if not asked.strip():
        raise BadInput(path, f"'{named}' is empty", line)
    return Dialogue((Message("user", asked),), f"{path.name}:{line}")


def _columns(
    path: Path, line: int, row: Mapping[str, object], columns: Mapping[str, str]
) -> tuple[str, str, str]:
    if columns:
        wrong = next((key for key in columns if key not in ("prompt", "completion", "rejected")), None)
        if wrong is not None:
            raise BadInput(path, f"columns must be prompt=..., completion=... or rejected=..., not '{wrong}'")
        return columns.get("prompt", "prompt"), "", columns.get("completion", "completion")
    if "chosen" in row and "prompt" in row:
        return "prompt", "", "chosen"
    for pair in PAIRS:
        if pair[0] in row and pair[2] in row:
            return pair
    shown = ", ".join(f"'{name}'" for name in list(row)[:12])
    raise BadInput(
        path,
        f"has neither messages nor prompt and completion, but {shown}. "
        "Name the columns: --columns prompt=COLUMN,completion=COLUMN",
        line,
    )


def _text(path: Path, line: int, row: Mapping[str, object], column: str) -> str:
    if column not in row:
        near = nearest(column, row)
        hint = f". Did you mean '{near}'?" if near else f"; there are: {', '.join(map(str, row))[:200]}"
        raise BadInput(path, f"no column '{column}'{hint}", line, code="unknown-key")
    value = row[column]
    if not isinstance(value, str):
        raise BadInput(path, f"'{column}' is {type(value).__name__}, not text", line, code="wrong-type")
    return value


def _listed(path: Path, line: int, chat: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(chat, list) or not chat or not all(isinstance(each, dict) for each in chat):
        raise BadInput(path, "'messages' must be a list of {role, content}", line, code="wrong-type")
    return chat


def _message(path: Path, line: int, row: Mapping[str, object]) -> Message:
    role, content = row.get("role", row.get("from")), row.get("content", row.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise BadInput(
            path, f"unknown role {str(role)[:40]!r}; known: {', '.join(_ROLES)}", line, code="unknown-name"
        )
    if not isinstance(content, str):
        raise BadInput(path, f"a message of the role '{role}' has no text", line)
    return Message(_ROLES[role], content)  # type: ignore[arg-type]


class TokenizedExample(NamedTuple):
    """One example: a document, and one with the rejected answer, if any.

    active_from: the token from which on an activated adapter changes the document.
    """

    document: Document
    rejected: Document | None = None
    active_from: int | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.document.tokens) + (len(self.rejected.tokens) if self.rejected else 0)


class PreparedExamples(NamedTuple):
    """The examples that fit, and the sources of those that are too long."""

    examples: tuple[TokenizedExample, ...]
    too_long: tuple[str, ...]
    nearly_all: int  # the limit, in tokens, that 95 % of all examples fit


class ConversationEncoder(DocumentEncoder):
    """Tokenizes the examples of a training."""

    def prepare(self, dialogues: Iterable[Dialogue], max_tokens: int) -> PreparedExamples:
        """Tokenize the examples of at most `max_tokens`. Raises UsageError if none is left."""
        examples, too_long, lengths = [], [], []
        for dialogue in dialogues:
            example = self.example(dialogue)
            lengths.append(max(len(document.tokens) for document in example[:2] if document is not None))
            if lengths[-1] > max_tokens:
                too_long.append(dialogue.where)
            else:
                examples.append(example)
        lengths.sort()
        nearly_all = lengths[math.ceil(_NEARLY_ALL * len(lengths)) - 1] if lengths else 0
        if not examples:
            raise UsageError(
                f"Every one of {len(lengths):,} examples is longer than {max_tokens:,} tokens, and none is "
                f"cropped. Raise max_length: {nearly_all:,} fits {_NEARLY_ALL:.0%} of them."
            )
        return PreparedExamples(tuple(examples), tuple(too_long), nearly_all)

    def example(self, dialogue: Dialogue) -> TokenizedExample:
        """The document of a conversation, and the one of its rejected answer."""
        rejected = None
        if dialogue.rejected is not None:
            worse = (*dialogue.messages[:-1], Message("assistant", dialogue.rejected))
            rejected = self.document(worse, dialogue.prefill)
        is_finished = dialogue.stop == "end"
        return TokenizedExample(self.document(dialogue.messages, dialogue.prefill, is_finished), rejected)
