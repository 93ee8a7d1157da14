"""The conversations of a report by technique and model, and the one that its first screen quotes.

Promises: every conversation that was drawn is shown once. The quoted breach is of the model and technique
that the advice names, if one was drawn. Text is cut, never changed.
Leaves to others: the draw (_samples.py), the marks (_marks.py) and the page (_talks.html.jinja).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from heredity.core.sanitize import shown
from heredity.study.advice import Advice
from heredity.study.plan import Plan
from heredity.study.report._marks import Piece, with_evidence
from heredity.study.report._samples import WANTED, Sample

_OPEN = 40  # transcripts of a page that are open from the start; a page of more is slow to read and to draw
_ASKED, _SAID = 200, 260  # characters of the quoted breach


class Talk(NamedTuple):
    """A conversation, and whether it is open when the page is."""

    sample: Sample
    is_open: bool


class TalkGroup(NamedTuple):
    """The conversations of one model in one technique: breaches first, the worst at the top."""

    model: str
    talks: tuple[Talk, ...]


class Quote(NamedTuple):
    """A breach in a few lines: what the user asked last, and the answer around its evidence."""

    sample: Sample
    asked: str
    said: list[Piece]
    is_cut: bool


def by_technique(samples: Sequence[Sample], order: dict[str, int]) -> dict[str, list[TalkGroup]]:
    """The groups of every technique, by model. The first breach of each group is open, up to a limit."""
    kinds = list(WANTED)
    found: dict[str, dict[str, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda s: (kinds.index(s.kind), -s.severity, s.row)):
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
    broken = [sample for sample in samples if sample.kind == "broke" and sample.steps]
    found = max(broken, key=lambda sample: _rank(sample, advice), default=None)
    if found is None:
        return None
    turns = {probe.id: probe.turns for probe in plan.probes}.get(found.probe, ())
    said, is_cut = _around(pieces(found, _answer(found)))
    return Quote(found, shown(turns[-1] if turns else "", _ASKED).text, said, is_cut)


def _rank(sample: Sample, advice: Advice) -> tuple[bool, bool, bool, int]:
    is_marked = any(piece.kind for piece in pieces(sample, _answer(sample)))
    return sample.model == advice.model, sample.technique == advice.technique, is_marked, sample.severity


def _answer(sample: Sample) -> str:
    """The last text or call that the evidence is in; else the last text, or the last call without one."""
    texts = [step.said.text for step in sample.steps if step.said.text.strip()]
    calls = [call for step in sample.steps for call in step.calls]
    marked = [text for text in (*calls, *texts) if any(piece.kind for piece in pieces(sample, text))]
    return (marked or texts or calls or ["(nothing)"])[-1]


def _around(found: list[Piece]) -> tuple[list[Piece], bool]:
    """The pieces cut to a few lines around the mark, and whether anything was cut."""
    before = found[0].text if not found[0].kind else ""
    n_before = len(before)
    start = max(0, n_before - _SAID // 2) if len(found) > 1 else 0
    left, kept = _SAID, []
    for i, piece in enumerate(found):
        text = piece.text[start if i == 0 and not piece.kind else 0 :][:left]
        left -= len(text)
        kept += [piece._replace(text=text)] if text else []
    return kept, sum(len(piece.text) for piece in found) > sum(len(piece.text) for piece in kept)
