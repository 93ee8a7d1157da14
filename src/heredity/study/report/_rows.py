"""A study's trials as rows in the plan's order, whatever their order on disk, in constant memory.

Promises: memory is 16 bytes per trial and one row. Each row is checked to belong to this plan. The same study
gives the same rows in the same order. Files are written atomically.
Leaves to others: the format of a row (csv.py, parquet.py, junit.py) and the estimates (study/estimates.py).
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Generic, Self, TypeVar

import msgspec

from heredity.core.errors import Damaged, NotComparable
from heredity.core.files import explain_full_disk, open_file, read_lines, replacing
from heredity.core.records import Exchange, Response, Verdict
from heredity.core.sanitize import label
from heredity.study import wording
from heredity.study.estimates import ALL, ModelCard
from heredity.study.named_models import model_of_study
from heredity.study.outcomes import is_part
from heredity.study.plan import Grid, Plan, Trial
from heredity.study.storage import RESPONSES, VERDICTS

_MAX_RANGES = 6  # more than these make no readable filter; the rows are then found by probe name
LEFT_OUT = "an error (its text is left out)"
_PREFIX = b'{"index":'
_Stored = TypeVar("_Stored", Response, Verdict)


class TrialRow(msgspec.Struct, frozen=True, kw_only=True):
    """A trial as a flat row. Names are as in the study's files; unknown values are None.

    model         the model's name in every report; `model_id` is its id
    application   the application's digest
    outcome       None if it is not judged, and for an error
    evidence, error, text   exact and untrusted. Without text: None, LEFT_OUT, None
    n_prompt_tokens, n_tokens, text   of every exchange of the trial together
    stop          of the last exchange
    severity      of a breach of the probe, from 4 (critical) to 1
    guarded       what guards found in all exchanges, separated by "; "
    withheld      the model's own text of each exchange that guards changed
    """

    trial: str
    index: int
    model: str
    model_id: str
    application: str
    technique: str
    probe: str
    kind: str
    twin: str | None
    cluster: str
    attack: str
    sample: int
    seed: int
    outcome: str | None
    manner: str | None
    judge: str | None
    evidence: str | None
    stop: str | None
    n_prompt_tokens: int
    n_tokens: int
    error: str | None
    text: str | None
    severity: int | None = None
    guarded: str | None = None
    withheld: str | None = None


TEXTS = ("evidence", "text", "withheld")  # columns that only a report with text has


def columns(with_text: bool) -> list[str]:
    """The columns of a table of rows, in order."""
    return [name for name in TrialRow.__struct_fields__ if with_text or name not in TEXTS]


def chosen_names(models: Sequence[ModelCard], chosen: Sequence[str] = ()) -> dict[str, str]:
    """The names of the models by id; of the chosen ones only, if any are. Raises UnknownName, UsageError."""
    ids = {model_of_study(models, name).id for name in chosen}
    return {ident: name for ident, name in wording.names(models).items() if not ids or ident in ids}


class TrialTable:
    """Random access to a study's rows on disk by the trial's index. A context manager.

    called: the names of the models, by id; rows of other models are left out.
    """

    def __init__(self, folder: Path, plan: Plan, called: dict[str, str], with_text: bool = True) -> None:
        self.grid, self._folder, self._called, self._with_text = Grid(plan), folder, called, with_text
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:  # the first is closed if the second is damaged
            enter, n = opened.enter_context, len(self.grid)
            self._responses = enter(_Offsets(self._folder / RESPONSES, n, Response))
            self._verdicts = enter(_Offsets(self._folder / VERDICTS, n, Verdict))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[TrialRow]:
        """Every trial of these models that has a response, in the plan's order."""
        of = (m for m, model in enumerate(self.grid.plan.models) if model.id in self._called)
        return (row for m in of for index in self.grid.of_model(m) if (row := self.row(index)) is not None)

    def row(self, index: int) -> TrialRow | None:
        """One trial; None if it was not asked. Raises NotComparable for a row of another plan."""
        response = self._responses.get(index)
        if response is None:
            return None
        trial = self.grid.trial(index)
        verdict = self._verdicts.get(index)
        for stored, place in ((response, RESPONSES), (verdict, VERDICTS)):
            if stored is not None and stored.trial != trial.id:
                raise NotComparable(f"{place}: trial {index} is not of this plan. Use the study's own files.")
        if response.application != self.grid.application:
            raise NotComparable(
                f"{RESPONSES}: trial {index} was asked under another application "
                f"({label(response.application, 12)}) than the plan's ({self.grid.application[:12]})."
            )
        return self._row(trial, response, verdict)

    def exchanges(self, index: int) -> tuple[Exchange, ...]:
        """The exchanges of a trial; none if texts are left out."""
        response = self._responses.get(index) if self._with_text else None
        return response.exchanges if response is not None else ()

    def _row(self, trial: Trial, response: Response, verdict: Verdict | None) -> TrialRow:
        probe, exchanges, with_text = trial.probe, response.exchanges, self._with_text
        error = response.error or (verdict.error if verdict is not None else None)
        return TrialRow(
            trial=trial.id,
            index=trial.index,
            model=self._called[trial.model.id],
            model_id=trial.model.id,
            application=self.grid.application,
            technique=probe.technique,
            probe=probe.id,
            kind=probe.kind,
            twin=probe.twin,
            cluster=probe.cluster,
            attack=trial.attack,
            sample=trial.sample,
            seed=trial.seed,
            outcome=verdict.outcome if verdict is not None else None,
            manner=verdict.manner if verdict is not None else None,
            judge=verdict.judge if verdict is not None else None,
            evidence=verdict.evidence if verdict is not None and with_text else None,
            stop=exchanges[-1].stop if exchanges else None,
            n_prompt_tokens=sum(exchange.n_prompt_tokens for exchange in exchanges),
            n_tokens=sum(exchange.n_tokens for exchange in exchanges),
            error=error if error is None or with_text else LEFT_OUT,
            text=_joined(exchanges) if with_text and exchanges else None,
            severity=probe.severity or None,
            guarded="; ".join(dict.fromkeys(note for e in exchanges for note in e.guarded or ())) or None,
            withheld="\n".join(e.withheld for e in exchanges if e.withheld) or None if with_text else None,
        )


def _joined(exchanges: Sequence[Exchange]) -> str:
    return "\n".join(exchange.text for exchange in exchanges)


class _Offsets(Generic[_Stored]):
    """The byte offset of each row of a JSONL file, by its field `index`: eight bytes per trial."""

    def __init__(self, path: Path, n_trials: int, kind: type[_Stored]) -> None:
        self._path = path
        self._decoder: msgspec.json.Decoder[_Stored] = msgspec.json.Decoder(kind)
        self._starts = array("Q", bytes(8 * n_trials))  # place + 1; 0: no such row
        self._n_trials = n_trials

    def __enter__(self) -> Self:
        self._file: BinaryIO = open_file(self._path) if self._path.exists() else io.BytesIO()
        try:
            self._find()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _find(self) -> None:
        place = 0
        for number, line in enumerate(read_lines(self._path), 1):
            if not line.endswith(b"\n"):
                return  # torn by a crash: its trial is asked again
            self._starts[self._index(line, number)] = place + 1
            place += len(line)

    def get(self, index: int) -> _Stored | None:
        if not self._starts[index]:
            return None
        self._file.seek(self._starts[index] - 1)
        try:
            return self._decoder.decode(self._file.readline())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(
                f"{self._path}: trial {index}: {label(str(error), 200)}. Run the same study again."
            ) from None

    def _index(self, line: bytes, number: int) -> int:
        try:
            # `index` is the first field of every row that heredity writes; decoding the rest is for later
            is_usual = line.startswith(_PREFIX)
            index = int(line[9 : line.index(b",", 9)]) if is_usual else self._decoder.decode(line).index
            if 0 <= index < self._n_trials:
                return index
        except (ValueError, msgspec.DecodeError):
            pass
        raise Damaged(f"{self._path}:{number}: not a row of this study. Remove that line to continue.")


@contextmanager
def whole(out: Path) -> Iterator[BinaryIO]:
    """Open a file for writing in parts; it gets its name at the end, or does not appear at all."""
    with replacing(out) as temporary, explain_full_disk(out.parent, 0), temporary.open("wb") as file:
        yield file


# --- the rows behind a cell of a report ---------------------------------------------------------------


def ranges(plan: Plan, model: str, technique: str, attack: str = ALL) -> list[tuple[int, int]]:
    """First and last index of each run of rows behind a cell, in the plan's order.

    Breach probes bring their benign twins, which are adjacent rows with verdicts of another kind.
    """
    own = {p.id for p in plan.probes if is_part(p, technique)}
    of = [i for i, p in enumerate(plan.probes) if p.id in own or (p.kind == "benign" and p.twin in own)]
    models = [i for i, card in enumerate(plan.models) if card.id == model]
    attacks = [i for i, name in enumerate(plan.attacks) if attack in (ALL, name)]
    per_attack = len(plan.probes) * plan.samples
    starts = (
        (m * len(plan.attacks) + a) * per_attack + p * plan.samples
        for m in models
        for a in attacks
        for p in of
    )
    return _runs(starts, plan.samples)


def ranges_words(plan: Plan, model: str, technique: str) -> str:
    """The rows behind a cell, as ranges of `index`."""
    found = ranges(plan, model, technique)
    if len(found) > _MAX_RANGES:
        return f"{len(found)} runs: filter by model and probe"
    return ", ".join(f"{first}–{last}" for first, last in found)


def jq_condition(plan: Plan, model: str, technique: str) -> str:
    """A jq condition that picks the first rows of a cell out of verdicts.jsonl."""
    found = ranges(plan, model, technique)[:_MAX_RANGES]
    return " or ".join(f"(.index >= {first} and .index <= {last})" for first, last in found)


def _runs(starts: Iterator[int], width: int) -> list[tuple[int, int]]:
    """Neighbouring blocks of `width` indices joined: (first, last) of each run."""
    runs: list[tuple[int, int]] = []
    for start in starts:
        if runs and runs[-1][1] == start - 1:
            runs[-1] = (runs[-1][0], start + width - 1)
        else:
            runs.append((start, start + width - 1))
    return runs
