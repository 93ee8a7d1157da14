"""One conversation of a study as a page shows it: its turns, its calls, and the evidence marked in the text.

    found = read(study, 17)
    for step in found.steps: step.asked, step.said, step.calls

Promises: the rows are read from the study's files at the place that the index names, and are those of the
trial. Text stays text: a mark is a place in it, and what is cut is counted.
Leaves to others: escaping (the templates), and lists of trials (queries.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from heredity.core.errors import Damaged, UsageError
from heredity.core.files import open_file
from heredity.core.records import Exchange, Response, ToolCall, Verdict
from heredity.core.sanitize import Shown, shown
from heredity.study.plan import Trial
from heredity.study.storage import RESPONSES, VERDICTS, Prefixes, is_of_its_trial
from heredity.study.turns import (
    Explanation,
    Piece,
    PromptTurn,
    explain,
    new_parts,
    turns,
    with_evidence,
    with_tokens,
)
from heredity.view.places import OpenStudy
from heredity.view.queries import Stored, stored

LIMIT = 20_000  # characters of one text on a page
_EVIDENCE = 400  # characters of evidence that are looked for; judges write at most 200


class TextPart(NamedTuple):
    """A text with its marks, and how many characters were left out at its end."""

    pieces: tuple[Piece, ...]
    n_cut: int


class ShownCall(NamedTuple):
    """A call of a tool. `is_marked`: the evidence names it."""

    name: str
    arguments: str
    is_marked: bool


class Step(NamedTuple):
    """One request and its reply. `asked` is what is new in the request, and `turns` the same by turn."""

    asked: TextPart
    turns: tuple[PromptTurn, ...]
    prefill: TextPart
    said: TextPart
    calls: tuple[ShownCall, ...]
    passages: tuple[tuple[str, TextPart], ...]  # retrieved: citation and text
    guarded: tuple[str, ...]
    stop: str


class Transcript(NamedTuple):
    """A trial with its whole conversation. `verdict`: None before it is judged, or if on another answer."""

    trial: Trial
    state: str
    response: Response
    verdict: Verdict | None
    steps: tuple[Step, ...]

    @property
    def explanation(self) -> Explanation:
        """The verdict in a sentence, and what shows it."""
        if self.verdict is None:
            return Explanation("")
        return explain(self.verdict, self.trial.probe.check, self.trial.probe.kind == "benign")

    @property
    def is_marked(self) -> bool:
        """Whether evidence is marked in an answer or at a call."""
        return any(
            any(piece.kind == "found" for piece in step.said.pieces) or any(c.is_marked for c in step.calls)
            for step in self.steps
        )


def read(study: OpenStudy, index: int) -> Transcript | None:
    """The conversation of a trial; None before it has an answer.

    Raises UsageError for an index outside the plan, and Damaged if the row is not there any more.
    """
    if not 0 <= index < len(study.grid):
        raise UsageError(f"The plan has the trials 0 to {len(study.grid) - 1}.")
    found = stored(study, index)
    if found is None:
        return None
    response, verdict = _rows(study, found)
    trial = study.grid.trial(index)
    is_own = verdict is not None and found.state != "unjudged"
    steps = tuple(_steps(response.exchanges, _evidence(verdict) if verdict is not None and is_own else []))
    return Transcript(trial, found.state, response, verdict if is_own else None, steps)


def _rows(study: OpenStudy, found: Stored) -> tuple[Response, Verdict | None]:
    path = study.folder / RESPONSES
    try:
        response = msgspec.json.decode(_bytes(path, *found.response), type=Response)
        verdict = None
        if found.verdict[1]:
            line = _bytes(study.folder / VERDICTS, *found.verdict)
            verdict = msgspec.json.decode(line, type=Verdict)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError):
        raise _moved(path) from None
    if not is_of_its_trial(response, study.grid) or (verdict and verdict.index != response.index):
        raise _moved(path)
    return response, verdict


def _bytes(path: Path, offset: int, n: int) -> bytes:
    with open_file(path) as file:
        file.seek(offset)
        return file.read(n)


def _moved(path: Path) -> Damaged:
    return Damaged(f"{path}: the row is not where it was. Load the page again.")


def prompts(study: OpenStudy, response: Response) -> list[Shown]:
    """The whole text that the model saw, of each request, and how many characters were cut from its end."""
    prefixes = Prefixes(study.folder)
    return [shown(prefixes.prompt(exchange), 10 * LIMIT) for exchange in response.exchanges]


def _evidence(verdict: Verdict) -> list[str]:
    """The evidence that is marked in an answer, the gravest first: a text has one mark."""
    unasked = () if verdict.unprompted is UNSET else verdict.unprompted
    found = [verdict.evidence, *(each.evidence for each in unasked)]
    return [each[:_EVIDENCE] for each in (found if verdict.outcome == "broke" else [*found[1:], found[0]])]


def _marked(text: str, evidence: Sequence[str], calls: Sequence[str]) -> list[Piece]:
    every = (with_evidence(text, each, calls) for each in evidence)
    return next((pieces for pieces in every if any(piece.kind for piece in pieces)), [Piece(text)])


def _steps(exchanges: Sequence[Exchange], evidence: Sequence[str]) -> Iterator[Step]:
    for exchange, asked in zip(exchanges, new_parts(exchanges), strict=True):
        passages = () if exchange.retrieved is UNSET else exchange.retrieved
        marked = partial(_marked, evidence=evidence, calls=[call.name for call in exchange.tool_calls])
        yield Step(
            _part(asked, with_tokens), tuple(turns(shown(asked, LIMIT).text)),
            _part(exchange.prefill, with_tokens), _part(exchange.text, marked),
            tuple(_call(call, evidence) for call in exchange.tool_calls[:50]),
            tuple((passage.citation, _part(passage.text, with_tokens)) for passage in passages),
            () if exchange.guarded is UNSET else exchange.guarded, exchange.stop,
        )  # fmt: skip


def _call(call: ToolCall, evidence: Sequence[str]) -> ShownCall:
    arguments = shown(msgspec.json.encode(call.arguments).decode(errors="replace"), 2000).text
    return ShownCall(call.name, arguments, bool(call.name) and any(call.name in each for each in evidence))


def _part(text: str, cut: Callable[[str], list[Piece]]) -> TextPart:
    kept = shown(text, LIMIT)
    return TextPart(tuple(cut(kept.text)), kept.n_cut)
