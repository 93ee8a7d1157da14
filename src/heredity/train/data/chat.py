"""Tuning data: conversations and completions from the files people have, each known by its file and line.

Promises: a row that is no conversation is a BadInput with file and line; an empty file is refused; the digest
is over what is learned, not over how the file is written.
Leaves to others: reading files (tables.py), and tokens (documents.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from heredity.core import readers
from heredity.core.errors import BadInput, UsageError, nearest
from heredity.core.records import Message, digest
from heredity.engines.chat.documents import Document, DocumentEncoder

# What data sets call a prompt, what may stand beside it, and the answer; the first that a row has is read.
PAIRS = (
    ("prompt", "", "completion"),
    ("prompt", "", "response"),
    ("question", "", "answer"),
    ("instruction", "input", "output"),
    ("instruction", "", "response"),
    ("input", "", "output"),
)
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class Dialogue(NamedTuple):
    """One example. Only what the assistant says is learned; `rejected` is a worse last answer, if any.

    `begun` was put into the mouth of the last answer, which goes on from there: it is read and not learned.
    """

    messages: tuple[Message, ...]
    where: str  # "tickets.jsonl:12"
    rejected: str | None = None
    begun: str = ""


class Data(NamedTuple):
    """What is learned from: the examples in the order of the file, and their digest."""

    name: str
    dialogues: tuple[Dialogue, ...]
    digest: str

    @property
    def settings(self) -> dict[str, Any]:
        """What a recipe records of it: no path, since that is not what changes the result."""
        return {"name": self.name, "rows": len(self.dialogues), "digest": self.digest}

    @classmethod
    def read(
        cls, path: Path | str, columns: Mapping[str, str] | None = None, has_answers: bool = True
    ) -> Data:
        """The examples of a file, see dialogues.read. Raises BadInput."""
        return read_data(Path(path), columns, has_answers)

    @classmethod
    def of(cls, name: str, rows: Sequence[str | tuple[str, str]]) -> Data:
        """What was made here, not read: prompts, or prompts each with its answer."""
        pairs = [(row,) if isinstance(row, str) else row for row in rows]
        return make_data(name, [_made(pair, f"{name}:{i}") for i, pair in enumerate(pairs, 1)])


def read_data(path: Path, columns: Mapping[str, str] | None = None, has_answers: bool = True) -> Data:
    """The examples of a file: chats ("messages") or prompt and answer, under the usual names or `columns`.

    columns maps "prompt", "completion" and "rejected" to the file's own names. Without answers only what is
    asked is read, one message each. Raises BadInput.
    """
    columns = columns or {}
    of_row = _dialogue if has_answers else _question
    found = [_whole(path, line, of_row(path, line, row, columns)) for line, row in readers.rows(path)]
    if not found:
        raise BadInput(path, "holds no row to learn from", code="empty-file")
    return make_data(path.name, found)


def make_data(name: str, dialogues: Sequence[Dialogue]) -> Data:
    """Examples that were made here, not read."""
    content = [(each.messages, each.rejected, *([each.begun] if each.begun else [])) for each in dialogues]
    return Data(name, tuple(dialogues), digest(content))


def _whole(path: Path, line: int, dialogue: Dialogue) -> Dialogue:
    """The row, where all of it can be written: JSON can hold half a character, which no tokenizer reads."""
    try:
        for text in (*(each.content for each in dialogue.messages), dialogue.rejected or ""):
            text.encode()
    except UnicodeEncodeError as error:
        half = f"{error.object[error.start]!a}"
        raise BadInput(
            path, f"holds half a character ({half}), which is no text", line, code="not-text"
        ) from None
    return dialogue


def _made(said: Sequence[str], where: str) -> Dialogue:
    roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
    return Dialogue(tuple(Message(role, text) for role, text in zip(roles, said, strict=False)), where)


def _dialogue(path: Path, line: int, row: Mapping[str, Any], columns: Mapping[str, str]) -> Dialogue:
    where = f"{path.name}:{line}"
    if not columns and (chat := row.get("messages", row.get("conversations"))) is not None:
        messages = tuple(_message(path, line, each) for each in _listed(path, line, chat))
        if not any(m.role == "assistant" and m.content.strip() for m in messages):
            raise BadInput(path, "no answer of the assistant to learn from", line, code="no-answer-to-learn")
        return Dialogue(messages, where)
    prompt, beside, answer = _columns(path, line, row, columns)
    asked = _text(path, line, row, prompt)
    if beside and str(row.get(beside) or "").strip():
        asked = f"{asked}\n\n{row[beside]}"
    said = _text(path, line, row, answer)
    if not said.strip():
        raise BadInput(path, f"'{answer}' is empty: there is nothing to learn", line, code="empty-completion")
    worse = columns.get("rejected", "rejected")
    rejected = _text(path, line, row, worse) if worse in row or "rejected" in columns else None
    return Dialogue((Message("user", asked), Message("assistant", said)), where, rejected)


def _question(path: Path, line: int, row: Mapping[str, Any], columns: Mapping[str, str]) -> Dialogue:
    usual = ("prompt", "question", "instruction", "goal", "text")
    named = columns.get("prompt") or next((c for c in row if c.casefold() in usual), "prompt")
    asked = _text(path, line, row, named)
    if not asked.strip():
        raise BadInput(path, f"'{named}' is empty: nothing is asked", line)
    return Dialogue((Message("user", asked),), f"{path.name}:{line}")


def _columns(
    path: Path, line: int, row: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[str, str, str]:
    if columns:
        wrong = next((key for key in columns if key not in ("prompt", "completion", "rejected")), None)
        if wrong is not None:
            raise BadInput(path, f"columns are prompt=..., completion=... and rejected=..., not '{wrong}'")
        return columns.get("prompt", "prompt"), "", columns.get("completion", "completion")
    if "chosen" in row and "prompt" in row:
        return "prompt", "", "chosen"
    for pair in PAIRS:
        if pair[0] in row and pair[2] in row:
            return pair
    shown = ", ".join(f"'{name}'" for name in list(row)[:12])
    raise BadInput(
        path,
        f"neither messages nor prompt and completion, but {shown}. Name the columns",
        line,
        code="no-dialogue-columns",
    )


def _text(path: Path, line: int, row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        near = nearest(column, row)
        hint = f". Did you mean '{near}'?" if near else f"; there are: {', '.join(map(str, row))[:200]}"
        raise BadInput(path, f"no column '{column}'{hint}", line, code="unknown-column")
    value = row[column]
    if not isinstance(value, str):
        raise BadInput(path, f"'{column}' is {type(value).__name__}, not a text", line, code="wrong-type")
    return value


def _listed(path: Path, line: int, chat: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(chat, list) or not chat or not all(isinstance(each, dict) for each in chat):
        raise BadInput(path, "'messages' must be a list of {role, content}", line, code="bad-messages")
    return chat


def _message(path: Path, line: int, row: Mapping[str, Any]) -> Message:
    role, content = row.get("role", row.get("from")), row.get("content", row.get("value"))
    if role not in _ROLES:
        raise BadInput(
            path, f"unknown role {str(role)[:40]!r}; known: {', '.join(_ROLES)}", line, code="unknown-role"
        )
    if not isinstance(content, str):
        raise BadInput(path, f"a message of the role '{role}' has no text", line)
    return Message(_ROLES[role], content)  # type: ignore[arg-type]


class TokenizedExample(NamedTuple):
    """One example of the data: a document, and one with a worse answer, where there is one."""

    document: Document
    rejected: Document | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.document.tokens) + (len(self.rejected.tokens) if self.rejected else 0)


class PreparedExamples(NamedTuple):
    """Examples that fit, and where those are from that do not."""

    examples: tuple[TokenizedExample, ...]
    too_long: tuple[str, ...]


class ConversationEncoder(DocumentEncoder):
    """Tokenizes the examples of a training."""

    def prepare(self, dialogues: Iterable[Dialogue], max_tokens: int) -> PreparedExamples:
        """Every example of at most `max_tokens`. Raises UsageError where none is left."""
        examples, too_long = [], []
        for dialogue in dialogues:
            example = self.example(dialogue)
            if max(len(document.tokens) for document in example if document is not None) > max_tokens:
                too_long.append(dialogue.where)
            else:
                examples.append(example)
        if not examples:
            raise UsageError(
                f"Every example is longer than {max_tokens} tokens, and none is cropped. Raise max_tokens.",
                code="examples-too-long",
            )
        return PreparedExamples(tuple(examples), tuple(too_long))

    def example(self, dialogue: Dialogue) -> TokenizedExample:
        """The document of a conversation, and of its rejected answer."""
        rejected = None
        if dialogue.rejected is not None:
            worse = (*dialogue.messages[:-1], Message("assistant", dialogue.rejected))
            rejected = self.document(worse, dialogue.begun)
        return TokenizedExample(self.document(dialogue.messages, dialogue.begun), rejected)
