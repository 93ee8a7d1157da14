"""The request log of `heredity serve --request-log`: each conversation of live traffic with its answer.

Each conversation is a prompt of its own, and equal ones are one cluster. Different models were asked
different things, so that they cannot be paired: an import takes the answers of one.

The log has secrets and personal data taken out of answers. An answer that held a secret broke, and one that
held something else can be held by no judge: it is unclear (redteam/judges/_choice.py).

Promises: a line that a crash tore is left out and counted, and the rest of the file is read. The same holds
for a conversation without a word of the user, which any caller may send.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from heredity.application.guarded import REMOVED
from heredity.core.errors import BadInput
from heredity.core.records import Stop, ToolCall, digest
from heredity.redteam.judges.protocols import SECRET_REMOVED, TEXT_REMOVED
from heredity.study.importers import Lacking, RecordedAnswer, conversation

OWN: dict[str, str] = {}
IS_UNPAIRED = True
VERSION = 1
_MARK = b'{"request_log":'
_STOPS: dict[str, Stop] = {"end": "end", "length": "length", "filter": "filter"}


def is_mine(path: Path, start: bytes) -> bool:  # noqa: ARG001 (FILE.1 has another ending)
    """Whether a file is a request log, by its first bytes."""
    return start.startswith(_MARK)


def read(path: Path) -> Iterator[RecordedAnswer]:
    """Every conversation with its line. Raises BadInput for a row of another version."""
    for line, row in _lines(path):
        if row is not None:
            yield _raw(path, line, row)


def lacking(path: Path) -> Lacking:
    """The torn lines, and the conversations without a word of the user."""
    rows = [row is None for _, row in _lines(path)]
    return Lacking(path, sum(rows), len(rows), "conversation")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, object] | None]]:
    """The rows; None for a line that is torn or asks nothing. A row is written whole, as one JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) and _asks(row) else None


def _asks(row: dict[str, object]) -> bool:
    """Whether the user says something; a row of another version is for `_raw` to refuse."""
    is_other = row.get("request_log") != VERSION
    return is_other or any(turn.strip() for turn in conversation(row.get("prompt"))[0])


def _raw(path: Path, line: int, row: dict[str, object]) -> RecordedAnswer:
    if row.get("request_log") != VERSION:
        raise BadInput(
            path, f"a row of version {row.get('request_log')!r}; this heredity reads {VERSION}", line
        )  # fmt: skip
    calls = listed if isinstance(listed := row.get("tool_calls"), list) else []
    asked = json.dumps([row.get("model"), row.get("prompt")])  # ASCII: a text may be no Unicode
    cluster = digest(asked)[:16]
    return RecordedAnswer(
        line,
        {**row, "cluster": cluster},
        stop=_STOPS.get(str(row.get("stop")), "end"),
        n_prompt_tokens=_number(row.get("n_prompt_tokens")),
        n_tokens=_number(row.get("n_tokens")),
        tool_calls=tuple(_call(call) for call in calls if isinstance(call, dict)),
        recorded=_removed(row),
    )


def _removed(row: dict[str, object]) -> dict[str, bool]:
    """The removals from an answer, as `recorded` has them; empty for an answer that is whole.

    A row of an earlier heredity has no `removed`: there the mark of a removal is all that is known.
    """
    named = row.get("removed")
    if isinstance(named, list):
        kinds = {each.get("kind") for each in named if isinstance(each, dict)}
        return {SECRET_REMOVED: True} if "secret" in kinds else {TEXT_REMOVED: True} if named else {}
    return {TEXT_REMOVED: True} if REMOVED in json.dumps([row.get("response"), row.get("tool_calls")]) else {}


def _number(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _call(call: dict[str, object]) -> ToolCall:
    """A call, without its arguments if they are not a JSON object any more: something was taken out."""
    try:
        arguments = msgspec.json.decode(str(call.get("arguments")), type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        arguments = {}
    return ToolCall(str(call.get("name")), arguments)
