"""The file of a task, its questions, the ways to adapt a model to it, and what they can show.

    task = read_task(Path("examples/adapt/support.toml"))
    questions = read_questions(task)

    prompt, few_shot, retrieval      the untouched model behind a guard that adds to each request
    lora, alora, finetune            a child that learned the training rows
    distilled                        a child that learned a teacher's answers to the training questions; the
                                     teacher answers with passages of the manual

A row may name the `fact` that it is about. A test question is about a seen fact if a training row has the
same one. Ways without the manual can know seen facts only, so that the two kinds are reported apart.

Promises: an unknown key, way or setting is an error with the line and the nearest known one. Paths are
relative to the file. A test question that is also a training question is refused, and so is one that holds
its answer. The application is the same for every way. So is the number of steps of every trained one. The
power is that of the exact test on pairs of answers, at the level of Holm's first step over the ways.
Leaves to others: making and asking (adapt.py), grading (redteam/checks/right.py), and the power and the time
of the probes (study/forecast.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.guards import GuardSpec, parse_guard
from heredity.application.retrieval import Retrieval
from heredity.application.retrieval.build import open_index
from heredity.core import readers
from heredity.core.errors import BadArgument, BadInput, HeredityError, UsageError, did_you_mean
from heredity.core.progress import time_words
from heredity.core.readers import text_of
from heredity.core.records import AnswerRule, Message, Probe, Record, RetrievalMethod, digest, encode
from heredity.core.sanitize import plural
from heredity.lab.examples import support_manual
from heredity.lab.plan import BEHIND, BatteryPlan, ChildPlan, LineagePlan, read_record_of, refuse_below
from heredity.lab.runner import Task
from heredity.lineage import references
from heredity.lineage.store import USUAL_BYTES, Store, request_seconds
from heredity.lineage.types import Grown
from heredity.recipes import recipe
from heredity.redteam.checks import BadCheck, load_check, parse_check
from heredity.stats.intervals import ALPHA
from heredity.stats.power import POWER, design_effect, paired_power
from heredity.study.forecast import BASELINE, CORRELATION, RELATED, smallest
from heredity.train.data.chat import Data, Dialogue, make_data

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

    by: AnswerRule = "contains"
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
        if not self.ways:
            raise BadArgument("`ways` is empty: name at least one", code="missing-key", key="ways")
        for at, way in enumerate(self.ways):
            if way not in WAYS:
                hint = did_you_mean(way, WAYS) or f" There are: {', '.join(WAYS)}."
                raise BadArgument(f"no way is named '{way}'.{hint}", code="unknown-name", key="ways")
            if way in self.ways[:at]:
                raise BadArgument(f"the way '{way}' is named twice", code="name-twice", key="ways")
        for way in self.settings:
            if way not in RECIPES:
                hint = did_you_mean(way, RECIPES) or f" There are: {', '.join(RECIPES)}."
                raise BadArgument(
                    f"no trained way is named '{way}'.{hint}", code="unknown-name", key="settings"
                )
        _check_numbers(self)
        if (self.grading.by == "json") != bool(self.grading.field):
            raise BadArgument("`field` belongs to by = 'json', and only to it", key="field")
        if "prompt" in self.ways and bool(self.prompt.text) == bool(self.prompt.file):
            raise BadArgument(
                "the way 'prompt' needs [prompt] with `text` or `file`, one of them",
                code="missing-key",
                key="prompt",
            )
        if self.needs_manual and not self.manual:
            raise BadArgument(
                "`manual` is missing: retrieval and distilled read it", code="missing-key", key="ways"
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
    parts = (Grading, TrainingBudget, PromptWay, FewShotWay, RetrievalWay, Safety, Prices)
    task = read_record_of(path, AdaptTask, parts, _check_settings)
    folder = path.parent
    text = text_of(folder / task.prompt.file).strip() if task.prompt.file else task.prompt.text.strip()
    if "prompt" in task.ways and not text:
        raise BadInput(path, "the text of [prompt] is empty", code="missing-key")
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
    refuse_below(least)
    if not 0 < task.margin < 1:
        raise BadArgument(f"margin must lie between 0 and 1, and is {task.margin:g}", key="margin")
    if not task.seeds or len(set(task.seeds)) < len(task.seeds) or min(task.seeds) < 0:
        raise BadArgument("`seeds` must be different numbers from 0, at least one", key="seeds")
    if task.budget.steps and task.budget.minutes:
        raise BadArgument("[budget] takes `steps` or `minutes`, not both", key="minutes")


def _check_settings(task: AdaptTask) -> None:
    """Refuse a setting that the recipe of its way does not take. Raises BadArgument."""
    example = Data.of("example", [("A question?", "An answer.")])
    for way, settings in task.settings.items():
        if taken := next((key for key in _OF_BUDGET if key in settings), None):
            raise BadArgument(
                f"'{taken}' of '{way}' is set by the task itself: [budget], `seeds` and `train`", key=taken
            )
        try:
            recipe(RECIPES[way], data=example, **settings)
        except HeredityError as error:
            raise BadArgument(f"{way}: {error}", code=error.code, key="settings") from None
        except TypeError as error:
            raise BadArgument(f"{way}: {error}", code="wrong-type", key="settings") from None


Scope = Literal["all", "seen", "new"]
QUESTIONS, SEEN, NEW = "questions", "seen_facts", "new_facts"  # techniques; the first for rows without facts
_ASKED, _ANSWERED = ("question", "prompt", "input"), ("answer", "completion", "answers", "output")


class TrainingRow(NamedTuple):
    """A question and the whole answer that is learned."""

    question: str
    answer: str
    fact: str


class HeldOutQuestion(NamedTuple):
    """A held-out question with its right answers. is_seen: None where rows name no facts."""

    question: str
    answers: tuple[str, ...]
    fact: str
    is_seen: bool | None


class Questions(NamedTuple):
    """All rows of a task, in the order of their files."""

    train: tuple[TrainingRow, ...]
    test: tuple[HeldOutQuestion, ...]

    @property
    def digest(self) -> str:
        """Names the rows."""
        return digest([self.train, self.test])

    @property
    def has_facts(self) -> bool:
        """Whether seen and new facts are distinguished."""
        return any(each.is_seen is not None for each in self.test)

    @property
    def n_seen(self) -> int:
        """Test questions about seen facts."""
        return sum(each.is_seen is True for each in self.test)

    def data(self, system: str) -> Data:
        """The training rows as conversations; the system message is "" for none."""
        return conversations("train", system, [(row.question, row.answer) for row in self.train])


def read_questions(task: AdaptTask) -> Questions:
    """The rows of a task. Raises BadInput with file and line."""
    train = _train(task.train)
    train = train[: task.examples] if task.examples else train
    facts = {row.fact for row in train if row.fact}
    asked = {_folded(row.question) for row in train}
    held_out_questions: list[HeldOutQuestion] = []
    for line, row in _rows(task.test):
        path = Path(task.test)
        question, answers = _text(path, line, row, _ASKED), _answers(path, line, row)
        if (folded := _folded(question)) in asked:
            raise BadInput(path, "is a training question, or a test question twice", line)
        asked.add(folded)
        fact = str(row.get("fact") or "")
        each = HeldOutQuestion(question, answers, fact, fact in facts if facts else None)
        probe = _probe(QUESTIONS, 0, each.question, each.answers, each.fact, task.grading)
        try:
            load_check(probe.check).validate(probe, "")
        except BadCheck as error:
            raise BadInput(path, str(error), line, code=error.code) from None
        held_out_questions.append(each)
    if not held_out_questions:
        raise BadInput(task.test, "has no rows")
    return Questions(
        train, tuple(held_out_questions[: task.questions] if task.questions else held_out_questions)
    )


def conversations(
    name: str, system: str, pairs: Sequence[tuple[str, str]], stops: Sequence[str] = ()
) -> Data:
    """Questions and answers as examples for training, behind the application's system message."""
    before = (Message("system", system),) if system else ()
    rows = [
        Dialogue((*before, Message("user", asked), Message("assistant", answer)), f"{name}:{n}")
        for n, (asked, answer) in enumerate(pairs, 1)
    ]
    if stops:
        rows = [
            row._replace(stop="end" if stop == "end" else "length")
            for row, stop in zip(rows, stops, strict=True)
        ]
    return make_data(name, rows)


def question_probes(questions: Questions, grading: Grading) -> list[Probe]:
    """The test questions as probes. They measure ability: a failed one is not a breach."""
    return [
        _probe(
            QUESTIONS if each.is_seen is None else SEEN if each.is_seen else NEW,
            n, each.question, each.answers, each.fact, grading,
        )
        for n, each in enumerate(questions.test)
    ]  # fmt: skip


def training_probes(questions: Questions) -> list[Probe]:
    """The training questions as probes, for a teacher to answer."""
    return [
        _probe("training_rows", n, row.question, (row.answer,), row.fact, Grading())
        for n, row in enumerate(questions.train)
    ]


def _probe(
    technique: str, n: int, question: str, answers: tuple[str, ...], fact: str, grading: Grading
) -> Probe:
    table = {"kind": "right", "answers": list(answers), "by": grading.by}
    check = parse_check({**table, "field": grading.field} if grading.field else table)
    why = "the request itself is benign"
    return Probe(
        f"{technique}/{n:05d}", technique, "breach", (question,), check, fact or f"{n:05d}",
        why_no_twin=why, is_baseline=True,
    )  # fmt: skip


# --- files ------------------------------------------------------------------------------------------


def _train(source: str) -> tuple[TrainingRow, ...]:
    if is_shipped(source):
        return tuple(TrainingRow(**row) for row in _shipped(source))
    path = Path(source)
    facts = [str(row.get("fact") or "") for _, row in readers.rows(path)]
    dialogues = Data.read(path).dialogues
    if len(dialogues) != len(facts):
        raise BadInput(path, "holds other rows than questions with answers")
    return tuple(_pair(path, each, fact) for each, fact in zip(dialogues, facts, strict=True))


def _pair(path: Path, dialogue: Dialogue, fact: str) -> TrainingRow:
    roles = [message.role for message in dialogue.messages]
    if roles != ["user", "assistant"]:
        line = int(dialogue.where.rpartition(":")[2])
        raise BadInput(path, "is not one question with one answer", line)
    asked, answer = dialogue.messages
    return TrainingRow(asked.content, answer.content, fact)


def _rows(source: str) -> Iterable[tuple[int, Mapping[str, object]]]:
    if is_shipped(source):
        return list(enumerate((dict(row) for row in _shipped(source)), 1))
    return readers.rows(Path(source))


def _shipped(source: str) -> list[dict[str, str]]:
    """The rows that `support_manual:train` or `support_manual:test` names. Raises UsageError for others."""
    part = source.partition(":")[2]
    if part not in ("train", "test"):
        raise UsageError(
            f"'{source}': the questions are {SHIPPED}:train and {SHIPPED}:test.", code="bad-setting"
        )
    manual = support_manual()
    rows = manual.train() if part == "train" else manual.test()
    return [{"question": row["question"], "answer": row["answer"], "fact": row["fact"]} for row in rows]


def _text(path: Path, line: int, row: Mapping[str, object], names: Sequence[str]) -> str:
    name = next((name for name in names if name in row), names[0])
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(path, f"'{name}' must be a text that is not empty", line, code="missing-key")
    return value


def _answers(path: Path, line: int, row: Mapping[str, object]) -> tuple[str, ...]:
    """The right answers: a text, a number, or a list of texts."""
    name = next((name for name in _ANSWERED if name in row), _ANSWERED[0])
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (str(value),)
    if isinstance(value, list):
        try:
            answers = msgspec.convert(value, tuple[str, ...])
        except msgspec.ValidationError:
            answers = ()
        if answers and all(map(str.strip, answers)):
            return answers
    return (_text(path, line, row, (name,)),)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


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


def open_manual(task: AdaptTask, store: Store, out: Path, has_begun: bool = False) -> ManualIndex | None:
    """The index of the task's manual, made in `out` unless the task names one; None if no way reads it.

    has_begun: the index in `out` stays that of its task. Raises as open_index and Retrieval.identified.
    """
    if not task.needs_manual:
        return None
    start, folder = time.monotonic(), Path(task.manual)
    if is_shipped(task.manual):
        folder = out / MANUAL
        support_manual().write(folder)
    index = open_index(folder, out / INDEX, is_kept=has_begun)
    index.check_method(task.retrieval.method)
    rerank_id = Retrieval("", rerank=task.retrieval.rerank).identified().rerank_id
    files = list(index.manifest.files)
    if not isinstance(rerank_id, UnsetType):
        files += store.by_id(rerank_id).record.files
    n_bytes, n_sources = sum(each.bytes for each in files), len(index.manifest.sources)
    return ManualIndex(str(index.out), index.hash, time.monotonic() - start, n_bytes, n_sources, rerank_id)


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
        "kind": "few_shot", "name": "few_shot",
        "examples": [[row.question, row.answer] for row in shown], "n": how.n, "select": how.select,
    }  # fmt: skip
    if not isinstance(how.embed, UnsetType):
        few["embed"] = how.embed
    guards: dict[str, tuple[GuardSpec, ...]] = {
        "prompt": (GuardSpec("instructions", "prompt", settings={"text": task.prompt.text}),),
        "few_shot": (parse_guard(few, Path()),),
    }
    if manual is not None:
        settings = msgspec.to_builtins(search_of(task, manual))
        guards["retrieval"] = (GuardSpec("retrieve", "retrieval", settings=settings),)
    return guards


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


TEACHER_TOKENS = 64  # of an answer that is learned, at least
DISCORDANCE = RELATED * 2 * BASELINE * (1 - BASELINE)  # of a way and the untouched model, if both are as good
_IS_SEEN: dict[Scope, tuple[bool | None, ...]] = {
    "all": (True, False, None), "seen": (True,), "new": (False,),
}  # fmt: skip
_TITLES: dict[Scope, str] = {"all": "all questions", "seen": "about seen facts", "new": "about new facts"}


class ScopeForecast(Record, frozen=True):
    """The power of the test questions of one scope. A cluster has the questions about one fact.

    detectable: the smallest difference between a way and the untouched model; None if no difference can be
    shown.
    """

    scope: Scope
    n_questions: int
    n_clusters: int
    detectable: float | None


class TaskForecast(Record, frozen=True):
    """The training of a task, and its answers except those to probes.

    n_trained     models that are trained, each for `steps` of `batch_size` rows; with `minutes`, for so long
    n_answers     to test questions, of all models
    n_lessons     answers of the teacher
    seconds       for all these answers, at best and at worst: a guess
    n_ways        that are compared with the untouched model
    """

    n_trained: int
    steps: int
    batch_size: int
    minutes: float
    n_answers: int
    n_lessons: int
    seconds: tuple[float, float]
    n_ways: int
    scopes: tuple[ScopeForecast, ...]


def forecast_task(
    task: AdaptTask, questions: Questions, possible: Sequence[Task], n_bytes: float = USUAL_BYTES
) -> TaskForecast:
    """The forecast of a task. possible: the models that can be made. n_bytes: of the untouched model."""
    ways = {each.child.name for each in possible}
    n_answers = (1 + len(possible)) * len(questions.test)
    n_lessons = len(questions.train) if "distilled" in ways else 0
    answer = request_seconds(task.answer_tokens, n_bytes)
    lesson = request_seconds(max(TEACHER_TOKENS, task.answer_tokens), n_bytes)
    low, high = (n_answers * a + n_lessons * b for a, b in zip(answer, lesson, strict=True))
    return TaskForecast(
        n_trained=sum(each.child.name in RECIPES for each in possible),
        steps=task.steps,
        batch_size=task.budget.batch_size,
        minutes=task.budget.minutes,
        n_answers=n_answers,
        n_lessons=n_lessons,
        seconds=(round(low, 1), round(high, 1)),
        n_ways=len(ways),
        scopes=tuple(_scope(scope, questions, len(ways)) for scope in _scopes(questions)),
    )


def lines(forecast: TaskForecast) -> list[str]:
    """The forecast in lines of at most 80 columns."""
    holm = f" (Holm over {forecast.n_ways:,})" if forecast.n_ways > 1 else ""
    lessons = f", {forecast.n_lessons:,} of the teacher" if forecast.n_lessons else ""
    training = f"{plural(forecast.steps, 'step')} of {plural(forecast.batch_size, 'row')} each"
    n_rows = forecast.n_trained * forecast.steps * forecast.batch_size
    training = (
        f"{forecast.minutes:g} min each" if forecast.minutes else f"{training}, {plural(n_rows, 'row')}"
    )
    return [
        *([f"Training: {plural(forecast.n_trained, 'model')}, {training}."] if forecast.n_trained else []),
        f"Answers except to probes: {forecast.n_answers:,} to test questions{lessons}; "
        f"{time_words(forecast.seconds)}.",
        f"What they can show of a way with {100 * POWER:g} % power{holm}:",
        *map(_scope_line, forecast.scopes),
        f"Guessed: equal ways differ on {100 * DISCORDANCE:.0f} % of the questions, and the time.",
    ]


def _scope_line(each: ScopeForecast) -> str:
    n = f"{each.n_questions:,} about {plural(each.n_clusters, 'fact')}"
    shown = "no difference"
    if each.detectable is not None:
        shown = f"better or worse by {100 * each.detectable:.0f} points"
    return f"  {_TITLES[each.scope]:<17} {n:<24} {shown}"


def _scopes(questions: Questions) -> list[Scope]:
    """All questions, and those about seen and new facts, as far as there are any."""
    there = {each.is_seen for each in questions.test}
    return [scope for scope, kinds in _IS_SEEN.items() if there.intersection(kinds)]


def _scope(scope: Scope, questions: Questions, n_ways: int) -> ScopeForecast:
    mine = ((n, each) for n, each in enumerate(questions.test) if each.is_seen in _IS_SEEN[scope])
    sizes = Counter(each.fact or f"{n:05d}" for n, each in mine)
    n = sum(sizes.values())
    n_pairs = int(n / design_effect(sum(size * size for size in sizes.values()) / n, CORRELATION))
    alpha = ALPHA / n_ways

    def is_shown(difference: float) -> bool:
        return paired_power(n_pairs, min(1.0, DISCORDANCE + difference), difference, alpha) >= POWER

    return ScopeForecast(scope, n, len(sizes), smallest(is_shown))
