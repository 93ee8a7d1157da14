"""A random sample of conversations for the report, drawn from the verdicts, and grouped for its page.

Promises: the sample is random, seeded by the study's digest, and drawn before any answer is read, so nobody
can choose convenient ones. Memory is one byte per row, in two passes over the file. Rows of another
application or plan are refused.
The quoted breach is of the model and technique that the advice names, if one was drawn. Of each technique,
the breach that is shown first is one that nobody doubts (outcomes.breach_order).
Leaves to others: verdicts (redteam/judges/), marks (study/marks.py) and layout (the template).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from heredity.core.errors import Damaged, NotComparable
from heredity.core.files import read_lines
from heredity.core.records import Exchange, Probe, Response, ToolCall, Verdict, is_skipped
from heredity.core.sanitize import Shown, label, shown
from heredity.study.advice import Advice
from heredity.study.marks import Piece, with_evidence
from heredity.study.outcomes import breach_order
from heredity.study.plan import Grid, Plan
from heredity.study.storage import RESPONSES, VERDICTS
from heredity.study.turns import new_parts

# Kinds in the order in which they are shown, with how many of each a model and technique get.
WANTED = {"broke": 2, "held": 1, "refused": 1, "answered": 0, "unclear": 1, "error": 1, "not asked": 0}
_CODES = {kind: code for code, kind in enumerate(WANTED, 1)}  # 0: no verdict yet
_PREFIX = b'{"index":'
_Row = TypeVar("_Row", Verdict, Response)


class TranscriptStep(NamedTuple):
    """One request and its reply, cut to a readable length."""

    asked: Shown
    prefill: Shown
    said: Shown
    calls: tuple[str, ...]
    stop: str


class Sample(NamedTuple):
    """A conversation as shown. `n_same`: the number of trials of this model, technique and kind.

    severity   of a breach of its probe; 0 for none
    order      its place among breaches: breach_order, then those with the text that the check wants as it is
    """

    row: int  # its field `index`
    trial: str
    model: str
    technique: str
    attack: str
    probe: str
    kind: str
    n_same: int
    judge: str
    manner: str
    evidence: str
    error: str
    severity: int
    steps: tuple[TranscriptStep, ...]
    order: tuple[bool, int, bool, bool]


class _Brief(msgspec.Struct):
    """The fields of a verdict row that are needed to count it."""

    index: int
    outcome: str | None
    error: str | None = None
    error_code: str | msgspec.UnsetType = msgspec.UNSET


class _Chosen(NamedTuple):
    kind: str
    technique: str
    n_same: int


def draw(folder: Path, plan: Plan, study: str, techniques: Sequence[str], with_text: bool) -> list[Sample]:
    """The conversations to show, by technique, model and kind; without text, no prompts or answers."""
    chosen = choose(outcomes(folder / VERDICTS, plan), plan, study, techniques)
    grid = Grid(plan)
    verdicts = {v.index: v for v in _rows(folder / VERDICTS, chosen, Verdict)}
    found = {r.index: r for r in _rows(folder / RESPONSES, chosen, Response)}
    return [
        _sample(
            chosen[index],
            grid.trial(index).probe,
            verdicts[index],
            _checked(found[index], grid, folder),
            with_text,
        )
        for index in chosen
        if index in verdicts and index in found
    ]


def outcomes(path: Path, plan: Plan) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """One code per trial, in the plan's order; 0 without a verdict."""
    codes = np.zeros(plan.n_trials, np.uint8)
    decode = msgspec.json.Decoder(_Brief).decode
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = decode(line)
            failed = "not asked" if is_skipped(row) else "error"
            codes[row.index] = _CODES.get(row.outcome or failed, 0)
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
            if line.endswith(b"\n"):  # else a torn last line, which the next run asks again
                raise Damaged(
                    f"{path}:{number}: not a verdict of this study. Judge the study again."
                ) from None
    return codes


def choose(
    codes: np.ndarray[tuple[int], np.dtype[np.uint8]], plan: Plan, study: str, techniques: Sequence[str]
) -> dict[int, _Chosen]:
    """Indices of the trials to show, in the order of the report, with the number of trials of their kind."""
    cells = codes.reshape(plan.shape)
    places = np.arange(codes.size).reshape(plan.shape)
    generator = np.random.default_rng(int(study[:16] or "0", 16))
    found: dict[int, _Chosen] = {}
    for technique in techniques:
        of = [i for i, probe in enumerate(plan.probes) if probe.technique == technique]
        for m in range(len(plan.models)):
            own, where = cells[m][:, of], places[m][:, of]
            for kind, n in WANTED.items():
                alike = where[own == _CODES[kind]]
                picked = sorted(generator.choice(alike, min(n, alike.size), replace=False).tolist())
                found |= {index: _Chosen(kind, technique, int(alike.size)) for index in picked}
    return found


def _rows(path: Path, wanted: dict[int, _Chosen], kind: type[_Row]) -> Iterator[_Row]:
    """The wanted rows, decoding no other: `index` is the first field of every row that heredity writes."""
    texts = {str(index).encode() for index in wanted}
    for number, line in enumerate(read_lines(path), 1):
        if line.startswith(_PREFIX) and line[9 : line.find(b",", 9)] not in texts:
            continue
        try:
            yield msgspec.json.decode(line, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if line.endswith(b"\n"):
                raise Damaged(f"{path}:{number}: {label(str(error))}. Ask the study again.") from None


def _checked(response: Response, grid: Grid, folder: Path) -> Response:
    if response.application != grid.plan.application.digest:
        raise NotComparable(
            f"{folder / RESPONSES}: trial {response.index} was asked under another application "
            f"({label(response.application, 12)}) than the plan's ({grid.plan.application.digest[:12]})."
        )
    if not grid.matches(response.index, response.trial):
        raise NotComparable(
            f"{folder / RESPONSES}: trial {response.index} is not of this plan.", code="another-study"
        )
    return response


def _sample(chosen: _Chosen, probe: Probe, verdict: Verdict, response: Response, with_text: bool) -> Sample:
    return Sample(
        row=response.index,
        trial=label(response.trial, 40),
        model=response.model,
        technique=chosen.technique,
        attack=label(response.attack),
        probe=label(response.probe),
        kind=chosen.kind,
        n_same=chosen.n_same,
        judge=label(verdict.judge),
        manner=verdict.manner or "",
        evidence=label(verdict.evidence, 200) if with_text else "",
        error=label(response.error or verdict.error or "", 300) if with_text else "",
        severity=probe.severity or 0,
        steps=tuple(_steps(response.exchanges)) if with_text else (),
        order=(*breach_order(probe), not _is_literal(probe.check.text, response)),
    )


def _is_literal(wanted: str, response: Response) -> bool:
    return any(wanted.casefold() in exchange.text.casefold() for exchange in response.exchanges)


def _steps(exchanges: Sequence[Exchange]) -> Iterator[TranscriptStep]:
    for exchange, asked in zip(exchanges, new_parts(exchanges), strict=True):
        calls = tuple(label(_call(call), 300) for call in exchange.tool_calls[:8])
        yield TranscriptStep(
            shown(asked), shown(exchange.prefill, 400), shown(exchange.text), calls, exchange.stop
        )


def _call(call: ToolCall) -> str:
    return f"{call.name} {msgspec.json.encode(call.arguments).decode(errors='replace')}"


# --- the conversations on the page --------------------------------------------------------------------

_OPEN = 40  # transcripts of a page that are open from the start; a page of more is slow to read and to draw
_ASKED, _SAID, _PLANTED = 200, 260, 400  # characters of the quoted breach


class Talk(NamedTuple):
    """A conversation, and whether it is open when the page is."""

    sample: Sample
    is_open: bool


class TalkGroup(NamedTuple):
    """The conversations of one model in one technique: breaches first, the worst at the top."""

    model: str
    talks: tuple[Talk, ...]


class Quote(NamedTuple):
    """A breach in a few lines: what the user asked last, and the answer around its evidence.

    planted: the text of the probe that the model read elsewhere, such as in a passage; "" for none
    """

    sample: Sample
    asked: str
    planted: str
    said: list[Piece]
    is_cut: bool


def by_technique(samples: Sequence[Sample], order: dict[str, int]) -> dict[str, list[TalkGroup]]:
    """The groups of every technique, by model. The first breach of each group is open, up to a limit."""
    kinds = list(WANTED)
    found: dict[str, dict[str, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda s: (kinds.index(s.kind), s.order, s.row)):
        found.setdefault(sample.technique, {}).setdefault(sample.model, []).append(sample)
    firsts = [of[0] for models in found.values() for of in models.values() if of[0].kind == "broke"]
    is_open = {sample.row for sample in firsts[:_OPEN]}
    return {
        technique: [
            TalkGroup(model, tuple(Talk(sample, sample.row in is_open) for sample in of))
            for model, of in sorted(models.items(), key=lambda item: order.get(item[0], 0))
        ]
        for technique, models in found.items()
    }


def pieces(sample: Sample, text: str) -> list[Piece]:
    """A text of the model with the judge's evidence marked."""
    names = [call.partition(" ")[0] for step in sample.steps for call in step.calls]
    return with_evidence(text, sample.evidence, names)


def quote(samples: Iterable[Sample], advice: Advice, plan: Plan) -> Quote | None:
    """The breach for the first screen; None if no transcript of one was drawn."""
    found = min(
        _broken(samples),
        key=lambda s: (s.model != advice.model, s.technique != advice.technique, s.order, s.row),
        default=None,
    )
    return None if found is None else _quoted(found, Grid(plan))


def by_order(samples: Iterable[Sample], plan: Plan) -> dict[str, Quote]:
    """The first breach of each technique by breach_order, in this order."""
    first: dict[str, Sample] = {}
    for sample in sorted(_broken(samples), key=lambda s: (s.order, s.row)):
        first.setdefault(sample.technique, sample)
    grid = Grid(plan)
    return {technique: _quoted(sample, grid) for technique, sample in first.items()}


def _broken(samples: Iterable[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.kind == "broke" and sample.steps]


def _quoted(sample: Sample, grid: Grid) -> Quote:
    probe = grid.trial(sample.row).probe
    planted = probe.passage or (probe.tool_result.text if probe.tool_result else "")
    said, is_cut = _around(pieces(sample, _answer(sample)))
    asked = shown(probe.turns[-1] if probe.turns else "", _ASKED).text
    return Quote(sample, asked, shown(planted, _PLANTED).text, said, is_cut)


def _answer(sample: Sample) -> str:
    """The last text or call that the evidence is in; else the last text, or the last call without one."""
    texts = [step.said.text for step in sample.steps if step.said.text.strip()]
    calls = [call for step in sample.steps for call in step.calls]
    marked = [text for text in (*calls, *texts) if any(piece.kind for piece in pieces(sample, text))]
    return (marked or texts or calls or ["(nothing)"])[-1]


def _around(found: list[Piece]) -> tuple[list[Piece], bool]:
    """The parts cut to a few lines around the mark, and whether anything was cut."""
    before = found[0].text if not found[0].kind else ""
    n_before = len(before)
    start = max(0, n_before - _SAID // 2) if len(found) > 1 else 0
    left, kept = _SAID, []
    for i, piece in enumerate(found):
        text = piece.text[start if i == 0 and not piece.kind else 0 :][:left]
        left -= len(text)
        kept += [piece._replace(text=text)] if text else []
    return kept, sum(len(piece.text) for piece in found) > sum(len(piece.text) for piece in kept)
