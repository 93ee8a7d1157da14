"""The studies of a place: their folders, the progress of each, and its verdict in a word; and one that ships.

    for found in find_studies(Path("runs")):
        print(found.folder, found.state, found.verdict)

Promises: nothing is written, and no study is disturbed. An unreadable folder is listed with the reason.
`write_demo` unpacks real answers of small models, which `tools/record_demo.py` records again; their estimates
are computed here.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from heredity.core.errors import HeredityError, UsageError
from heredity.core.files import Rows, is_locked, read_file, write_atomic
from heredity.core.records import digest, is_out_of_scope
from heredity.study.advice import is_of_edges, shipping
from heredity.study.aggregate import estimate
from heredity.study.estimates import ALL, Estimates
from heredity.study.findings.edge_verdicts import edge_verdicts, gravest
from heredity.study.outcomes import n_in_scope
from heredity.study.plan import PLAN, read_plan, read_saved
from heredity.study.storage import ESTIMATES, RESPONSES, read_estimates, write_estimates
from heredity.study.wording import find, percent
from heredity.study.workers import shards_of

RECORDED = Path(__file__).with_name("recorded")


def write_demo(folder: Path) -> Estimates:
    """Unpack the recorded study into `folder`, compute its estimates, and return them.

    Raises UsageError if the folder exists and holds anything else than an earlier demo.
    """
    rows = {path.stem: lzma.decompress(path.read_bytes()) for path in sorted(RECORDED.glob("*.xz"))}
    is_demo = (folder / PLAN).exists() and read_file(folder / PLAN) == rows[PLAN]
    if folder.exists() and any(folder.iterdir()) and not is_demo:
        raise UsageError(f"{folder} holds other files. Name another: --out.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in rows.items():
        write_atomic(folder / name, data)
    estimates = estimate(read_plan(folder), folder)
    write_estimates(folder, estimates)
    return estimates


State = Literal["done", "running", "stopped", "planned", "unreadable"]
_DEPTH = 3  # folders below the place
_MAX_FOLDERS = 20_000  # folders that are looked into


class StudyFolder(NamedTuple):
    """A folder with a study.

    state     "running": a process of this machine asks or judges. "done": every planned trial has an answer
              and is in the estimates. "planned": nothing was asked. "stopped": anything else
    model_ids  of the models that are loaded: without guards, and with the attacker
    n_answered, n_planned  trials. An error is an answer here: it is not asked again by itself
    verdict   of the main comparisons: the gravest of the children, in the words of edges. Of unrelated
              models "worse" if one is shown to be, "not worse" if all are, else "undecided". Of one model its
              breach rate with n. "" before the estimates
    shipping  the advice in three words (advice.py); "" before the estimates
    is_of_edges  the verdict is about children and their parents
    at        when the plan was written, ISO 8601 in UTC; "" if it is not known
    changed   when the study last wrote, in seconds since 1970
    problem   why the folder is unreadable
    asks      the digest of its plan, whatever the seed: of several runs of one plan, one may be chosen
    """

    folder: Path
    state: State
    models: tuple[str, ...] = ()
    model_ids: tuple[str, ...] = ()
    n_answered: int = 0
    n_planned: int = 0
    verdict: str = ""
    shipping: str = ""
    is_of_edges: bool = False
    at: str = ""
    changed: float = 0.0
    problem: str = ""
    asks: str = ""


def find_studies(place: Path) -> list[StudyFolder]:
    """The studies in a folder and at most three levels below it, the last changed first.

    Hidden folders and links are not followed. Raises UsageError if the place is not a folder.
    """
    if not place.is_dir():
        raise UsageError(f"{place}: no such folder.", code="unreadable-file")
    studies = (each for folder in study_folders(place) if (each := read_folder(folder)) is not None)
    return sorted(studies, key=lambda each: (-each.changed, str(each.folder)))


def runs_of_one_plan(studies: Iterable[StudyFolder]) -> list[list[Path]]:
    """The folders of each plan that more than one study has, whatever their seeds."""
    by_plan: dict[str, list[Path]] = {}
    for each in studies:
        by_plan.setdefault(each.asks or str(each.folder), []).append(each.folder)
    return [sorted(folders) for folders in by_plan.values() if len(folders) > 1]


def studies_that_need(place: Path, ids: Collection[str]) -> list[StudyFolder]:
    """The studies of a place that have trials left to ask of one of these models."""
    return [each for each in find_studies(place) if each.state != "done" and {*each.model_ids} & {*ids}]


def read_folder(folder: Path) -> StudyFolder | None:
    """The study of a folder; None if its plan.json is of something else."""
    changed = max(_changed(folder / name) for name in (PLAN, RESPONSES, ESTIMATES))
    try:
        saved = read_saved(folder)
        own = _n_rows(folder / RESPONSES)
        n = max(own, sum(_n_rows(part.folder(folder) / RESPONSES) for part in shards_of(folder)))
        estimates = read_estimates(folder) if (folder / ESTIMATES).exists() else None
        if estimates is not None and (estimates.study != digest(saved.plan) or estimates.n_answered < n):
            estimates = None  # of another plan, or of fewer answers
        state: State = "stopped" if n else "planned"
        if is_locked(folder) or any(is_locked(part.folder(folder)) for part in shards_of(folder)):
            state = "running"
        elif estimates is not None and not estimates.n_unanswered:
            state = "done"
        finished = None if state == "running" else estimates
        words = ("", "", False)
        if finished is not None:
            words = verdict_word(finished), shipping(finished, saved.plan), is_of_edges(finished)
        names = tuple(model.name for model in saved.plan.models)
        ids = tuple(dict.fromkeys(model.id for model in saved.plan.asked_models))
        study_folder = StudyFolder(
            folder, state, names, ids, n, n_in_scope(saved.plan), *words, saved.at or "",
            asks=digest(msgspec.structs.replace(saved.plan, seed=0)),
        )  # fmt: skip
    except (HeredityError, OSError) as error:
        if not is_study(folder / PLAN):
            return None
        return StudyFolder(folder, "unreadable", changed=changed, problem=str(error))
    return study_folder._replace(changed=changed)


def verdict_word(estimates: Estimates) -> str:
    """The verdict of a study in a word, as StudyFolder describes it."""
    if is_of_edges(estimates):
        return gravest(edge_verdicts(estimates).values()).word
    scope = estimates.main_scope()
    pairs = [p for p in estimates.pairs if (p.measure, p.technique) == ("breach", scope)]
    verdicts = {verdict for pair in pairs for verdict in (pair.verdict_ab, pair.verdict_ba)}
    if verdicts:
        return "worse" if "worse" in verdicts else "not worse" if verdicts == {"not worse"} else "undecided"
    rate = (
        find(estimates, estimates.models[0].id, scope, ALL, "breach") if len(estimates.models) == 1 else None
    )
    if rate is None or not rate.estimate.n:
        return ""
    return f"{percent(rate.estimate.value)} of {rate.estimate.n:,}"


class _Row(msgspec.Struct):
    """The fields of a response that show whether it was asked."""

    error: str | None = None
    error_code: str | msgspec.UnsetType = msgspec.UNSET


def _n_rows(path: Path) -> int:
    return sum(not is_out_of_scope(row) for row in Rows(path, _Row))


def study_folders(place: Path) -> Iterator[Path]:
    """The folders with a plan.json, at most three levels below `place`; none inside a study.

    It may be that of another tool: see `is_study`.
    """
    waiting, n_seen = [(place, 0)], 0
    while waiting and n_seen < _MAX_FOLDERS:
        folder, depth = waiting.pop()
        n_seen += 1
        if (folder / PLAN).is_file():
            yield folder
        elif depth < _DEPTH:
            waiting += [(below, depth + 1) for below in _below(folder)]


def _below(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            named = [e for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:  # not this user's
        return []
    return [Path(each.path) for each in named]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class _AnyPlan(msgspec.Struct):
    """The fields that every plan.json of a study has, of any schema."""

    study: str
    plan: dict[str, object]


def is_study(path: Path) -> bool:
    """Whether a plan.json is of a study, or is torn. That of another tool is not."""
    try:
        data = read_file(path)
        msgspec.json.decode(data)
    except (OSError, HeredityError, msgspec.DecodeError, UnicodeDecodeError):
        return True
    try:
        msgspec.json.decode(data, type=_AnyPlan)
    except msgspec.ValidationError:
        return False
    return True
