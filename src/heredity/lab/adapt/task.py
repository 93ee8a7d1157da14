"""The file of a task: the model, its application and questions, the ways to adapt it, and their budget.

    task = read_task(Path("examples/adapt/support.toml"))

Promises: an unknown key, way or setting is an error with the line and the nearest known one. Paths are
relative to the file.
Leaves to others: the questions (questions.py), and the models of the ways (ways.py).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.retrieval.spec import Retrieval
from heredity.core.errors import BadArgument, BadInput, HeredityError, code_of, did_you_mean
from heredity.core.readers import in_words, text_of, toml_line_of, toml_of
from heredity.core.records import Record, RetrievalMethod
from heredity.lineage import references
from heredity.recipes import recipe
from heredity.redteam.checks.right import Rule
from heredity.train.data.chat import Data

Way = Literal["prompt", "few_shot", "retrieval", "lora", "alora", "finetune", "distilled"]
WAYS: tuple[Way, ...] = get_args(Way)
RECIPES: dict[str, str] = {
    "lora": "lora", "alora": "alora", "finetune": "finetune", "distilled": "finetune",
}  # fmt: skip
SHIPPED = "support_manual"  # in place of a folder; with ":train" or ":test", of a file
Value = str | int | float | bool | tuple[str, ...]
_STEPS = 60
_OF_BUDGET = ("steps", "epochs", "batch_size", "seed", "data")  # settings that the task itself has
_QUICK_STEPS, _QUICK_QUESTIONS, _QUICK_EXAMPLES, _QUICK_BEHAVIOURS, _QUICK_TOKENS = 2, 12, 24, 4, 12


class Grading(Record, frozen=True):
    """How an answer is graded (redteam/checks/right.py). field: of a JSON object."""

    by: Rule = "contains"
    field: str = ""


class TrainingBudget(Record, frozen=True):
    """The training of a way, for one seed: steps, or minutes, from which steps are measured."""

    steps: int = 0
    minutes: float = 0.0
    batch_size: int = 8


class PromptWay(Record, frozen=True):
    """The text that is added to the system prompt, or a file of it."""

    text: str = ""
    file: str = ""


class FewShotWay(Record, frozen=True):
    """Training rows that are shown with each question: the first ones, or those most like it.

    embed: the embedding model by which they are like it; BM25 without one.
    """

    n: int = 4
    select: Literal["first", "similar"] = "similar"
    embed: str | UnsetType = UNSET


class RetrievalWay(Record, frozen=True):
    """Passages of the manual that are shown with each question. rerank, candidates: as of an application."""

    passages: int = 3
    method: RetrievalMethod = "bm25"
    rerank: str | UnsetType = UNSET
    candidates: int | UnsetType = UNSET

    def __post_init__(self) -> None:
        # Its limits are those of an application's.
        Retrieval("", self.passages, self.method, rerank=self.rerank, candidates=self.candidates)


class Safety(Record, frozen=True):
    """The study of breaches and over-refusal.

    behaviours: of each technique; 0 for all. max_tokens: of an answer; 0 for the application's own.
    """

    probes: tuple[str, ...] = ("core",)
    attacks: tuple[str, ...] = ("direct",)
    behaviours: int = 0
    max_tokens: int = 0


class Prices(Record, frozen=True):
    """Prices in any currency, 0 if not known, and the number of answers that a cost includes.

    per_hour        of the machine that trains and answers
    prompt, answer  per million tokens, of a model behind an API
    """

    per_hour: float = 0.0
    prompt: float = 0.0
    answer: float = 0.0
    answers: int = 1000


class AdaptTask(Record, frozen=True):
    """One task and the ways to adapt a model to it.

    model        the untouched model, with which every way begins
    application  the plain application, in which every way is asked
    train        questions with whole answers, which the trained ways learn and few_shot shows
    test         held-out questions; their answers are those that are graded
    manual       a folder of documents, or an index: what retrieval searches
    teacher      writes the answers that "distilled" learns, with the manual; "" for the model itself
    ways         names of WAYS, in the order of the result
    answer_tokens        of an answer to a test question, at most
    settings             of the recipe of a trained way, by its name
    examples, questions  training and test rows that are used, from the beginning; 0 for all
    """

    title: str
    model: str
    application: str
    train: str
    test: str
    manual: str = ""
    teacher: str = ""
    ways: tuple[str, ...] = WAYS
    seeds: tuple[int, ...] = (0,)
    margin: float = 0.1
    judge: str = ""
    answer_tokens: int = 32
    examples: int = 0
    questions: int = 0
    grading: Grading = Grading()
    budget: TrainingBudget = TrainingBudget()
    prompt: PromptWay = PromptWay()
    few_shot: FewShotWay = FewShotWay()
    retrieval: RetrievalWay = RetrievalWay()
    safety: Safety = Safety()
    prices: Prices = Prices()
    settings: dict[str, dict[str, Value]] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_ways(self)
        _check_numbers(self)
        if (self.grading.by == "json") != bool(self.grading.field):
            raise BadArgument(
                "`field` belongs to by = 'json', and only to it", code="bad-setting", key="field"
            )
        if "prompt" in self.ways and bool(self.prompt.text) == bool(self.prompt.file):
            raise BadArgument(
                "the way 'prompt' needs [prompt] with `text` or `file`, one of them",
                code="setting-missing",
                key="prompt",
            )
        if self.needs_manual and not self.manual:
            raise BadArgument(
                "`manual` is missing: retrieval and distilled read it", code="setting-missing", key="ways"
            )

    @property
    def needs_manual(self) -> bool:
        """Whether one of the ways reads the manual."""
        return bool({"retrieval", "distilled"} & set(self.ways))

    @property
    def steps(self) -> int:
        """Optimizer steps of a trained way; 0 where minutes decide."""
        return 0 if self.budget.minutes else self.budget.steps or _STEPS

    @property
    def is_quick(self) -> bool:
        """Whether it is as small as a quick run, which decides nothing."""
        return (self.steps, self.questions) == (_QUICK_STEPS, _QUICK_QUESTIONS)

    def quick(self) -> AdaptTask:
        """The same task in few steps and with few questions, to see it work."""
        safety = msgspec.structs.replace(
            self.safety, attacks=("direct",), behaviours=_QUICK_BEHAVIOURS, max_tokens=_QUICK_TOKENS
        )
        budget = msgspec.structs.replace(self.budget, steps=_QUICK_STEPS, minutes=0.0)
        return msgspec.structs.replace(
            self, seeds=self.seeds[:1], budget=budget, safety=safety, examples=_QUICK_EXAMPLES,
            questions=_QUICK_QUESTIONS, answer_tokens=min(self.answer_tokens, _QUICK_TOKENS),
        )  # fmt: skip


def read_task(path: Path, model: str = "") -> AdaptTask:
    """Read a task, with all relative paths taken from its folder. Raises BadInput with the line.

    model: replaces the one of the file; of a path, the working folder.
    """
    try:
        task = msgspec.convert(toml_of(path), AdaptTask, strict=True)
        _check_settings(task)
    except (msgspec.ValidationError, ValueError) as error:
        code = code_of(error, "bad-setting")
        raise BadInput(path, _explain(str(error)), toml_line_of(path, error), code=code) from None
    folder = path.parent
    text = text_of(folder / task.prompt.file).strip() if task.prompt.file else task.prompt.text.strip()
    if "prompt" in task.ways and not text:
        raise BadInput(path, "the text of [prompt] is empty", code="setting-missing")
    probes = tuple(str(folder / name) if name.endswith(".toml") else name for name in task.safety.probes)
    return msgspec.structs.replace(
        task,
        model=model or references.placed(task.model, folder),
        teacher=references.placed(task.teacher, folder) if task.teacher else "",
        application=str(folder / task.application),
        train=_placed(task.train, folder),
        test=_placed(task.test, folder),
        manual=_placed(task.manual, folder),
        prompt=PromptWay(text),
        safety=msgspec.structs.replace(task.safety, probes=probes),
    )


def is_shipped(source: str) -> bool:
    """Whether a source is the manual of the package, or its questions."""
    return source.partition(":")[0] == SHIPPED


def without_places(task: AdaptTask) -> AdaptTask:
    """The task as it is wherever its files lie: of each path only the last name."""
    return msgspec.structs.replace(
        task,
        model=references.without_folder(task.model),
        teacher=references.without_folder(task.teacher) if task.teacher else "",
        application=Path(task.application).name,
        train=Path(task.train).name,
        test=Path(task.test).name,
        manual=Path(task.manual).name,
        safety=msgspec.structs.replace(task.safety, probes=tuple(Path(p).name for p in task.safety.probes)),
    )


def _placed(source: str, folder: Path) -> str:
    return source if not source or is_shipped(source) else str(folder / source)


def _check_ways(task: AdaptTask) -> None:
    if not task.ways:
        raise BadArgument("`ways` is empty: name at least one", code="setting-missing", key="ways")
    for at, way in enumerate(task.ways):
        if way not in WAYS:
            hint = did_you_mean(way, WAYS) or f" There are: {', '.join(WAYS)}."
            raise BadArgument(f"no way is named '{way}'.{hint}", code="unknown-name", key="ways")
        if way in task.ways[:at]:
            raise BadArgument(f"the way '{way}' is named twice", code="name-twice", key="ways")
    for way in task.settings:
        if way not in RECIPES:
            hint = did_you_mean(way, RECIPES) or f" There are: {', '.join(RECIPES)}."
            raise BadArgument(f"no trained way is named '{way}'.{hint}", code="unknown-name", key="settings")


def _check_numbers(task: AdaptTask) -> None:
    least = {
        "answer_tokens": (task.answer_tokens, 1), "examples": (task.examples, 0),
        "questions": (task.questions, 0), "steps": (task.budget.steps, 0),
        "batch_size": (task.budget.batch_size, 1), "n": (task.few_shot.n, 1),
        "behaviours": (task.safety.behaviours, 0),
        "max_tokens": (task.safety.max_tokens, 0), "minutes": (task.budget.minutes, 0),
        "per_hour": (task.prices.per_hour, 0), "prompt": (task.prices.prompt, 0),
        "answer": (task.prices.answer, 0), "answers": (task.prices.answers, 1),
    }  # fmt: skip
    for key, (value, low) in least.items():
        if not (math.isfinite(value) and value >= low):
            raise BadArgument(f"{key} must be at least {low}, and is {value:g}", code="bad-setting", key=key)
    if not 0 < task.margin < 1:
        raise BadArgument(
            f"margin must lie between 0 and 1, and is {task.margin:g}", code="bad-setting", key="margin"
        )
    if not task.seeds or len(set(task.seeds)) < len(task.seeds) or min(task.seeds) < 0:
        raise BadArgument(
            "`seeds` must be different numbers from 0, at least one", code="bad-setting", key="seeds"
        )
    if task.budget.steps and task.budget.minutes:
        raise BadArgument("[budget] takes `steps` or `minutes`, not both", code="bad-setting", key="minutes")


def _check_settings(task: AdaptTask) -> None:
    """Refuse a setting that the recipe of its way does not take. Raises BadArgument."""
    example = Data.of("example", [("A question?", "An answer.")])
    for way, settings in task.settings.items():
        if taken := next((key for key in _OF_BUDGET if key in settings), None):
            raise BadArgument(
                f"'{taken}' of '{way}' is set by the task itself: [budget], `seeds` and `train`",
                code="bad-setting",
                key=taken,
            )
        try:
            recipe(RECIPES[way], data=example, **settings)
        except HeredityError as error:
            raise BadArgument(f"{way}: {error}", code=error.code, key="settings") from None
        except TypeError as error:
            raise BadArgument(f"{way}: {error}", code="wrong-type", key="settings") from None


def _explain(message: str) -> str:
    """An error of the file in plain words, with the nearest key for an unknown one."""
    unknown = re.search(r"unknown field `([^`]+)`", message)
    if unknown is None:
        return in_words(message)
    kinds = (AdaptTask, Grading, TrainingBudget, PromptWay, FewShotWay, RetrievalWay, Safety, Prices)
    known = [name for kind in kinds for name in kind.__struct_fields__]
    return f"unknown key '{unknown[1]}'.{did_you_mean(unknown[1], known)}"
