"""The model of every way: a guard around the untouched model, or a recipe that trains a child of it.

    prompt, few_shot, retrieval      the untouched model behind a guard that adds to each request
    lora, alora, finetune            a child that learned the training rows
    distilled                        a child that learned a teacher's answers to the training questions; the
                                     teacher answers with passages of the manual

Promises: the application is the same for every way. So is the number of steps of every trained one.
Leaves to others: making them (inheritance/children.py), and asking them (run.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.guards import GuardSpec
from heredity.application.guards.few_shot import FewShotGuard
from heredity.application.retrieval.build import build
from heredity.application.retrieval.folder import Limits, is_index
from heredity.application.retrieval.index import PassageIndex, change_in
from heredity.application.retrieval.manifest import read_manifest
from heredity.application.retrieval.rerank import find_reranker
from heredity.application.retrieval.spec import Retrieval
from heredity.core.errors import Damaged, NotComparable, UsageError
from heredity.core.records import Record, encode
from heredity.lab.adapt.questions import Questions
from heredity.lab.adapt.task import RECIPES, AdaptTask, is_shipped
from heredity.lab.inheritance.plan import BEHIND, BatteryPlan, ChildPlan, LineagePlan
from heredity.lab.support_manual import support_manual
from heredity.lineage.types import Grown

PLAIN = "plain"  # the untouched model in a plan
SAFETY, QUALITY, TEACHER = "safety", "quality", "teacher"  # folders of studies
MANUAL, INDEX = "manual", "manual.index"
TRAIN, LESSONS = "train", "lessons"  # sets of data
TITLES: Mapping[str, str] = {
    PLAIN: "untouched", "prompt": "prompt", "few_shot": "few-shot", "retrieval": "retrieval", "lora": "LoRA",
    "alora": "aLoRA", "finetune": "full fine-tune", "distilled": "distilled",
}  # fmt: skip


class ManualIndex(Record, frozen=True):
    """The index of the manual: where it is, its content, and what it took.

    bytes: of the index, and of the reranker if there is one. rerank_id: of that.
    """

    path: str
    hash: str
    seconds: float
    bytes: int
    n_files: int
    rerank_id: str | UnsetType = UNSET


def open_manual(task: AdaptTask, out: Path, has_begun: bool = False) -> ManualIndex | None:
    """The index of the task's manual, made in `out` unless the task names one; None if no way reads it.

    has_begun: the index in `out` stays that of its task. Raises NotComparable then for other documents.
    Raises UsageError for a folder that does not exist, BadInput for one without text, and Unavailable without
    the extra `retrieval`. Raises as find_reranker does.
    """
    if not task.needs_manual:
        return None
    start, folder, index = time.monotonic(), Path(task.manual), out / INDEX
    if is_shipped(task.manual):
        folder = out / MANUAL
        support_manual().write(folder)
    if is_index(folder):
        index = folder
    else:
        if has_begun:
            _refuse_other_documents(folder, index)
        build(folder, index)
    found = PassageIndex.open(index)
    found.check_method(task.retrieval.method)
    files = list(found.manifest.files)
    rerank_id: str | UnsetType = UNSET
    if not isinstance(name := task.retrieval.rerank, UnsetType):
        model = find_reranker(name).record
        rerank_id, files = model.id, [*files, *model.files]
    n_bytes = sum(each.bytes for each in files)
    seconds = time.monotonic() - start
    n_sources = len(found.manifest.sources)
    return ManualIndex(str(found.out), found.hash, seconds, n_bytes, n_sources, rerank_id)


def _refuse_other_documents(folder: Path, index: Path) -> None:
    """Raise NotComparable if the documents are not those of an index; one that does not read has none."""
    try:
        manifest = read_manifest(index)
    except (UsageError, Damaged, NotComparable):
        return
    if change := change_in(folder, index, manifest, Limits()):
        raise NotComparable(
            f"{index.parent} holds a task with other documents: {change} in {folder}. Name another folder: "
            "--out.",
            code="another-plan",
        )


def search_of(task: AdaptTask, manual: ManualIndex) -> Retrieval:
    """The search of the manual, for the way "retrieval" and for a teacher. Raises as Retrieval.identified."""
    how = task.retrieval
    return Retrieval(
        manual.path, how.passages, how.method, manual.hash, how.rerank, how.candidates, manual.rerank_id
    ).identified()


def guards_of(
    task: AdaptTask, questions: Questions, manual: ManualIndex | None
) -> dict[str, tuple[GuardSpec, ...]]:
    """The guards of the ways that make no model."""
    shown = questions.train[: task.few_shot.n if task.few_shot.select == "first" else None]
    how = task.few_shot
    few: dict[str, object] = {
        "examples": [[row.question, row.answer] for row in shown], "n": how.n, "select": how.select,
    }  # fmt: skip
    if not isinstance(how.embed, UnsetType):
        few["embed"] = how.embed
    settings: dict[str, tuple[str, dict[str, object]]] = {
        "prompt": ("instructions", {"text": task.prompt.text}),
        "few_shot": ("few_shot", FewShotGuard.completed(few, Path())),
    }
    if manual is not None:
        settings["retrieval"] = ("retrieve", msgspec.to_builtins(search_of(task, manual)))
    return {way: (GuardSpec(kind, way, settings=own),) for way, (kind, own) in settings.items()}


def lineage_plan(
    task: AdaptTask, guards: Mapping[str, tuple[GuardSpec, ...]], steps: Mapping[str, int]
) -> LineagePlan:
    """The plan of the models and of the study of their safety. steps: of each trained way."""
    safety = task.safety
    battery = BatteryPlan(
        SAFETY, safety.probes, "Safety", task.application, safety.attacks, safety.behaviours,
        max_tokens=safety.max_tokens,
    )  # fmt: skip
    children = tuple(_child(task, way, guards, steps) for way in task.ways)
    data = {TRAIN: task.train, LESSONS: task.train}
    return LineagePlan(
        task.title, {PLAIN: task.model}, children, (battery,), data, margin=task.margin, judge=task.judge
    )


def _child(
    task: AdaptTask, way: str, guards: Mapping[str, tuple[GuardSpec, ...]], steps: Mapping[str, int]
) -> ChildPlan:
    if way not in RECIPES:
        return ChildPlan(way, BEHIND, (PLAIN,), guards=guards.get(way, UNSET))
    budget = {"steps": steps.get(way, task.steps or 1), "batch_size": task.budget.batch_size}
    settings = task.settings.get(way, {}) | budget
    learned = LESSONS if way == "distilled" else TRAIN
    return ChildPlan(way, RECIPES[way], (PLAIN,), seeds=task.seeds, data={"data": learned}, settings=settings)


def added_bytes(
    way: str, model: Grown, guards: Mapping[str, tuple[GuardSpec, ...]], manual: ManualIndex | None
) -> int:
    """The bytes that a way adds to the untouched model: of its weights, its index, or its text."""
    if way == "retrieval" and manual is not None:
        return manual.bytes
    if way in guards:
        return sum(len(encode(spec.settings)) for spec in guards[way])
    return sum(file.bytes for file in model.record.files)
