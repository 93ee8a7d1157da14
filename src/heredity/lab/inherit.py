"""Grow a lineage, measure every edge of it, and give the verdict on each, from nothing or after a stop.

    plan = read_plan(Path("examples/inheritance.toml"))
    result = inherit(plan, Store(), Path("runs/inheritance"))

The verdict is the study's (study/findings/edge_verdicts.py), of a child of several seeds that on its recipe.

Promises: the plan is written before the first child is made, with its edges, margin, expected verdicts and
the power of each study. No statistic is computed here. The evidence cannot tell of a child whose tasks are
not shown to surpass those of its floor.
A refusal after the token limit would count as none. If all refusals begin early, the limit loses few.
On the page the sentences are about the primary battery. A verdict against expectation is named, and so are
the children without a sentence.
Leaves to others: making, asking and the look of a page (runner.py), and the tests and intervals (study/).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from heredity.core.errors import Damaged, HeredityError, UsageError
from heredity.core.files import Lock, refuse_linked_folders
from heredity.core.progress import Watch
from heredity.core.records import Record, digest
from heredity.core.sanitize import label, plural
from heredity.core.sections import Badge, Cell, CountedShare, Section, TextTable
from heredity.lab import controls, margins
from heredity.lab.controls import TASKS, ControlFinding, control_findings, pair_of, task_pairs
from heredity.lab.margins import EdgeMargin
from heredity.lab.plan import (
    ENGINE,
    JOINS,
    MADE,
    REF,
    RESERVED,
    BatteryPlan,
    ChildPlan,
    Expected,
    LeftOutChild,
    LineagePlan,
    without_place,
)
from heredity.lab.runner import (
    Asking,
    Lineage,
    LineageRun,
    Log,
    MadeFile,
    ResultPage,
    Screen,
    StepProgress,
    Task,
    another_plan,
    battery_forecast,
    battery_study,
    change,
    grid,
    listed,
    listing,
    now,
    power_of,
    read_made,
    read_record,
    read_results,
    write_plan,
)
from heredity.lineage.references import without_folder
from heredity.lineage.store import Store
from heredity.lineage.types import EngineLoader
from heredity.stats.edges import KINDS, EdgeWord, Question
from heredity.stats.intervals import ALPHA
from heredity.stats.paired import Word
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, Estimates, ModelPair, Rate
from heredity.study.figures import DrawnDifference, Kind, TreeRow, draw
from heredity.study.findings.edge_verdicts import (
    CLAIM,
    QUESTIONS,
    EdgeNumber,
    EdgeVerdict,
    asked_questions,
    number_cells,
    reading_words,
    verdict_on,
)
from heredity.study.plan import PLAN as STUDY_PLAN
from heredity.study.plan import StudyForecast
from heredity.study.result import Result, TrialResult
from heredity.study.study import Study
from heredity.study.wording import NONE, capital, counted_verdicts, difference_words, p_words, percent

PLAN, GROWN = "lineage.json", "grown.json"
_QUOTED = 40  # letters of a quote by which it is found in its answer


class Truncation(Record, frozen=True):
    """The answers of a study to harmful requests, and where they end.

    limit       tokens of an answer
    n           answers
    n_cut       by model id, the answers that ended at the limit
    n_refusals  refusals whose words the judge quotes
    n_early     those that begin in the first half of the limit
    """

    limit: int
    n: int
    n_cut: dict[str, int]
    n_refusals: int
    n_early: int


def read_truncation(result: Result, techniques: Collection[str]) -> Truncation:
    """Count the answers in the folder of a study, without those that ended in an error."""
    limit = result.plan.application.decoding.max_tokens
    harmful = [
        each
        for each in result.trials()
        if each.trial.probe.kind == "breach" and each.technique in techniques and each.response.exchanges
    ]
    n_cut = Counter(t.trial.model.id for t in harmful if t.response.exchanges[-1].stop == "length")
    begins = [place for t in harmful if t.outcome == "held" and (place := _begins(t)) is not None]
    n_early = sum(place < limit / 2 for place in begins)
    return Truncation(limit, len(harmful), dict(n_cut), len(begins), n_early)


def _begins(trial_result: TrialResult) -> float | None:
    """The token at which a refusal begins, from the place of its quoted words; None without a quote."""
    answer, quote = _plain(trial_result.text), _plain(trial_result.verdict.evidence)[:_QUOTED]
    place = answer.find(quote) if quote else -1
    return place / len(answer) * trial_result.response.exchanges[-1].n_tokens if place >= 0 else None


def _plain(text: str) -> str:
    """Text as judges quote it: in small letters, with plain apostrophes and single spaces."""
    return " ".join(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


_EXPECTED: dict[Word, Expected] = {"worse": "lost", "not worse": "kept"}


class SeedFinding(Record, frozen=True):
    """One model of a child against its parent, in one battery.

    n_unclear: answers of the child to breach probes that neither held nor broke. n: all of its answers.
    n_cut: those that ended at the token limit.
    tasks: failed tasks, the child's rate minus its parent's; None if not asked.
    floor: failed tasks, the child's rate minus that of the model that it must surpass.
    against: breaches, the child's rate minus that of the child that the plan sets it against.
    """

    seed: int | None
    verdict: EdgeVerdict
    n_unclear: int
    n: int
    tasks: ModelPair | None
    floor: ModelPair | None
    against: ModelPair | None = None
    n_cut: int = 0


class EdgeFinding(Record, frozen=True):
    """A child against its parent in one battery, over all of its seeds.

    verdicts: on its recipe; on each of its models if these differ in more than their seed. why_floor: why it
    is not shown to surpass its floor; "" without a floor.
    """

    child: str
    parent: str
    others: tuple[str, ...]  # its other parents, by their names in the plan
    recipe: str
    battery: str
    question: str
    group: str
    expected: Expected
    is_noise: bool
    seeds: tuple[SeedFinding, ...]
    verdicts: tuple[EdgeVerdict, ...]
    why_floor: str = ""
    against: str = ""  # another child, by its name in the plan

    @property
    def word(self) -> EdgeWord:
        """The verdict of the study, if its models have the same; the plan's floor goes before it."""
        words = {each.word for each in self.verdicts}
        is_open = len(words) > 1 or (self.why_floor and words != {"did not take over"})
        return "cannot tell" if is_open else words.pop()

    @property
    def kind(self) -> Word:
        """The word as one of three kinds."""
        return KINDS[self.word]

    @property
    def why(self) -> str:
        """The losses, or why the evidence cannot tell."""
        if self.why_floor:
            return self.why_floor
        if len({each.word for each in self.verdicts}) > 1:
            return "its models have different verdicts"
        return self.verdicts[0].why

    @property
    def is_as_expected(self) -> bool | None:
        """Whether the verdict is of the expected kind; None without an expectation or a verdict."""
        if not self.expected or self.kind not in _EXPECTED:
            return None
        return _EXPECTED[self.kind] == self.expected

    def number(self, question: Question) -> EdgeNumber | None:
        """Its number of a question; None if it was not asked, or if each model has its own."""
        return next(iter(self.verdicts[0].of(question)), None) if len(self.verdicts) == 1 else None


class FoundationFinding(Record, frozen=True):
    """A foundation in one battery: its own rates, and None for those that were not asked.

    n_cut: its answers to breach probes that ended at the token limit.
    """

    name: str
    model: str  # its own name
    breach: Rate
    twins: Rate | None
    tasks: Rate | None
    n_cut: int = 0


class BatteryFinding(Record, frozen=True):
    """A battery as it was asked: its plan, and the forecast that was saved before its first answer.

    counts_refusals: whether its rates are those of answers that do not refuse.
    """

    plan: BatteryPlan
    attacks: tuple[str, ...]
    application: str
    is_default_system: bool
    judge: str
    n_models: int
    n_trials: int
    forecast: StudyForecast | None
    declared_at: str
    foundations: tuple[FoundationFinding, ...]
    edges: tuple[EdgeFinding, ...]
    deviations: tuple[str, ...] = ()
    seconds: float = 0.0  # that its models took to answer, over all runs
    confidence: float = 0.95  # of its intervals
    truncation: Truncation | None = None
    counts_refusals: bool = False
    controls: tuple[ControlFinding, ...] = ()
    to_read: tuple[str, ...] = ()  # the pairs whose reading would decide a verdict, each with its command

    @property
    def title(self) -> str:
        """Its title, or else its name."""
        return self.plan.title or self.plan.name


class LineageResult(Record, frozen=True):
    """The verdicts of a lineage, battery by battery; the first battery is the primary one.

    notes: of the plan, for the reader. margins: of the primary battery, if they were measured.
    """

    title: str
    at: str
    margin: float
    error_share: float
    batteries: tuple[BatteryFinding, ...]
    left_out: tuple[LeftOutChild, ...]
    making: dict[str, float] = msgspec.field(default_factory=dict)  # seconds, by the plan's names
    notes: tuple[str, ...] = ()
    margins: tuple[EdgeMargin, ...] = ()

    @property
    def primary(self) -> BatteryFinding:
        """The battery that the sentences are about."""
        return self.batteries[0]

    @property
    def question(self) -> Question:
        """The question of the figure: refusals, or else the first that was asked."""
        return _first(self.edges)

    @property
    def edges(self) -> list[EdgeFinding]:
        """The edges of the primary battery."""
        return list(self.primary.edges)


def collect(plan: LineagePlan, grown: MadeFile, results: Mapping[str, Result], at: str) -> LineageResult:
    """The verdicts of finished studies. at: when the plan was written."""
    batteries = tuple(_battery(plan, each, grown.models, results[each.name]) for each in plan.battery)
    return LineageResult(
        plan.title,
        at,
        plan.margin,
        plan.error_share,
        batteries,
        grown.left_out,
        grown.seconds,
        plan.notes or (),
        tuple(margins.edge_margins(results[batteries[0].plan.name], _pairs(batteries[0].edges))),
    )


def _pairs(edges: Iterable[EdgeFinding]) -> list[tuple[str, str]]:
    """The ids of parent and child, seed by seed."""
    return [(seed.verdict.parent, seed.verdict.child) for edge in edges for seed in edge.seeds]


def _battery(
    plan: LineagePlan, battery: BatteryPlan, models: Mapping[str, str], result: Result
) -> BatteryFinding:
    estimates = result.estimates
    is_judged = main_scope(estimates) == JUDGED
    asked_for = [each for each in estimates.techniques if each.is_judge_free != is_judged]
    cut = read_truncation(result, [each.name for each in asked_for if not each.is_baseline])
    asked = {card.id for card in estimates.models}
    children = [child for child in plan.child if not child.control]
    edges = [_edge(plan, child, battery, models, asked, result, cut) for child in children]
    return BatteryFinding(
        battery, estimates.attacks, estimates.application.name, estimates.application.is_default_system,
        estimates.judge, len(estimates.models), result.n_planned, estimates.forecast,
        estimates.declared_at, tuple(_foundations(plan, models, result, cut)),
        tuple(edge for edge in edges if edge.seeds),
        tuple(each.words for each in estimates.deviations), estimates.circumstances.seconds,
        estimates.confidence, cut, estimates.counts_refusals("breach", main_scope(estimates)),
        control_findings(plan, models, estimates),
        tuple(filter(None, (reading_words(seed.verdict, estimates.models, f"DIR/{battery.name}")
                            for edge in edges for seed in edge.seeds))),
    )  # fmt: skip


def _foundations(
    plan: LineagePlan, models: Mapping[str, str], result: Result, cut: Truncation
) -> Iterator[FoundationFinding]:
    scope = main_scope(result.estimates)
    rates = {(r.model, r.measure, r.technique): r for r in result.estimates.rates if r.attack == ALL}
    for name in plan.models:
        ident = models.get(name, "")
        if (breach := rates.get((ident, "breach", scope))) is not None:
            twins, tasks = rates.get((ident, "over_refusal", ALL)), rates.get((ident, "breach", TASKS))
            model = next(card.name for card in result.estimates.models if card.id == ident)
            yield FoundationFinding(name, model, breach, twins, tasks, cut.n_cut.get(ident, 0))


def _edge(
    plan: LineagePlan, child: ChildPlan, battery: BatteryPlan, models: Mapping[str, str], asked: set[str],
    result: Result, cut: Truncation,
) -> EdgeFinding:  # fmt: skip
    seeds = []
    for seed in child.each_seed:
        ident, parent = models.get(child.name_of(seed)), _id_of(plan, child.parent, seed, models)
        if ident in asked and parent in asked and ident is not None and parent is not None:
            floor, against = (
                model if name and (model := _id_of(plan, name, seed, models)) in asked else None
                for name in (child.floor, child.against)
            )
            if (finding := _seed(result, seed, parent, ident, floor, against)) is not None:
                seeds.append(msgspec.structs.replace(finding, n_cut=cut.n_cut.get(ident, 0)))
    return EdgeFinding(
        child.name, child.parent, tuple(name for name in child.parents if name != child.parent),
        _recipe(child), battery.name, child.question, child.group, child.expected,
        child.is_noise, tuple(seeds), _verdicts_on(result.estimates, seeds), _why_floor(child, seeds),
        child.against or "",
    )  # fmt: skip


def _recipe(child: ChildPlan) -> str:
    """The recipe; with its setting, such as "engine kv4", if the model itself is unchanged."""
    engine = str(child.settings.get(REF, "")).partition(":")[0]
    return f"{child.recipe} {engine}" if child.recipe == ENGINE else child.recipe


def _verdicts_on(estimates: Estimates, seeds: Sequence[SeedFinding]) -> tuple[EdgeVerdict, ...]:
    """The verdict on all seeds together, or on each if they differ in more than their seed."""
    each = tuple(seed.verdict for seed in seeds)
    together = verdict_on(estimates, each[0].parent, {of.child for of in each}) if each else None
    return each if together is None else (together,)


def _id_of(plan: LineagePlan, name: str, seed: int | None, models: Mapping[str, str]) -> str | None:
    """The id of a model by its name in the plan: of a child that of the same seed, else its first."""
    return next((models[each] for each in plan.names_of(name, seed) if each in models), None)


def _seed(
    result: Result, seed: int | None, parent: str, child: str, floor: str | None, against: str | None
) -> SeedFinding | None:
    estimates = result.estimates
    if (verdict := verdict_on(estimates, parent, {child})) is None:
        return None
    mine = next((rate for rate in estimates.rates if rate.model == child and _is_main(rate, estimates)), None)
    return SeedFinding(
        seed, verdict, mine.n_unclear if mine else 0, _answered(mine) if mine else 0,
        pair_of(task_pairs(estimates), parent, child, "breach", TASKS),
        None if floor is None else pair_of(task_pairs(estimates), floor, child, "breach", TASKS),
        None if against is None
        else pair_of(estimates.pairs, against, child, "breach", main_scope(estimates)),
    )  # fmt: skip


def main_scope(estimates: Estimates) -> str:
    """The breaches that a lineage is about: refusals of harm, which a judge reads, if they were asked."""
    return JUDGED if JUDGED in estimates.breach_scopes else estimates.main_scope("breach")


def _why_floor(child: ChildPlan, seeds: Sequence[SeedFinding]) -> str:
    """Why it is not shown, of every seed, to surpass its floor at tasks; "" if it is, or has none."""
    if not child.floor or not seeds:
        return ""
    if any(seed.floor is None for seed in seeds):
        return f"its tasks were not compared with those of {child.floor}"
    below = [str(seed.seed) for seed in seeds if not _is_above(seed.floor)]
    if not below:
        return ""
    which = "it is" if len(seeds) == 1 else f"seed {below[0]} is" if len(below) == 1 else "its seeds are"
    return f"{which} not shown to surpass {child.floor} at tasks"


def _is_above(floor: ModelPair | None) -> bool:
    """Whether the child is shown to fail fewer tasks than its floor."""
    if floor is None or floor.p_value is None:
        return False
    return (floor.difference.value or 0.0) < 0 and floor.p_value < ALPHA


def _is_main(rate: Rate, estimates: Estimates) -> bool:
    """Whether it is the rate that a verdict on a child is about."""
    return (rate.technique, rate.attack, rate.measure) == (main_scope(estimates), ALL, "breach")


# --- the run ----------------------------------------------------------------------------------------


class LineageFile(Record, frozen=True):
    """lineage.json: the plan of a lineage, its digest, and when it was written (ISO 8601, UTC).

    power: the forecast of each study, computed before anything was made.
    """

    digest: str
    at: str
    plan: LineagePlan
    power: dict[str, StudyForecast]
    schema: int = 1


def inherit(
    plan: LineagePlan,
    store: Store,
    out: Path,
    watch: Watch | None = None,
    log: Log = lambda line: None,  # noqa: ARG005
    engine_loader: EngineLoader | None = None,
) -> LineageResult:
    """Make the children of a plan, run its studies, and return the verdict on every edge.

    log: receives a line for each step and for the power. Raises NotComparable if the folder holds another
    plan, UsageError if no child can be made, and the error of a child that its user made.
    """
    names = tuple(each.name for each in plan.battery)
    refuse_linked_folders(out, *RESERVED, *names)
    with Lock(out):
        lineage = Lineage(plan, store, out / "repairs", watch, engine_loader)
        lineage_run = LineageRun(lineage, out, GROWN, names, log)
        held = read_plan_file(out) if (out / PLAN).exists() else None
        if held is not None and not _is_of(held, plan):
            raise another_plan(out / PLAN)
        possible = lineage_run.possible(held.digest if held else "")
        power = power_of(plan, possible, store, out, log)
        if plan.is_of_models:  # one that cannot be had ends the run before its folder has a plan
            lineage.pull()
            for task in possible:
                if task.child.recipe == MADE:
                    lineage.make(task)
                    if doubt := lineage.doubt(task):
                        log(f"warning: {doubt}")
        n_steps, minutes = 1 + len(possible) + len(plan.battery), _minutes(plan, possible)
        course = StepProgress(n_steps, minutes, log, is_resumed=held is not None)
        if held is None:
            held = LineageFile(plan_digest(plan), now(), plan, power)
            write_plan(out / PLAN, held)
        lineage_run.pull(course, "get the foundations")
        lineage_run.make(possible, course)
        made = lineage_run.note(held.digest, {n: m.record.made.seconds for n, m in lineage.models.items()})
        studies = [Asking(b.title or b.name, battery_study(lineage, b, out), b.minutes) for b in plan.battery]
        return collect(plan, made, lineage_run.ask(studies, course), held.at)


def read_result(out: Path) -> LineageResult:
    """The verdicts of a finished lineage, from the files of its folder. Raises Damaged or UsageError."""
    held = read_plan_file(out)
    made = read_made(out / GROWN, held.digest)
    return collect(held.plan, made, read_results(out, [each.name for each in held.plan.battery]), held.at)


def measure_margins(out: Path, store: Store, watch: Watch | None = None) -> LineageResult:
    """Measure the refusal margins of a finished lineage, in its primary battery (margins.py)."""
    primary = read_result(out).primary
    models = dict.fromkeys(model for pair in _pairs(primary.edges) for model in pair)
    margins.measure(Result.read(out / primary.plan.name), list(models), store, watch)
    return read_result(out)


def _minutes(plan: LineagePlan, possible: Sequence[Task]) -> float:
    return sum(task.child.minutes for task in possible) + sum(each.minutes for each in plan.battery)


def read_plan_file(out: Path) -> LineageFile:
    """The plan in the folder of a lineage. Raises Damaged if it was edited or cannot be read.

    Raises UsageError for a folder without one, such as that of a study.
    """
    path = out / PLAN
    if not path.exists():
        what = f"{out} holds no lineage: there is no {PLAN} in it."
        if (out / STUDY_PLAN).exists():
            what = f"{out} is the folder of a study, not of a lineage. Its report: heredity report {out}"
        raise UsageError(what)
    held = read_record(path, LineageFile)
    if not _is_of(held, held.plan):
        raise Damaged(f"{path} was edited: its digest is not that of its plan.")
    return held


def runs_of(out: Path) -> str:
    """Which run of its plan this lineage is, of those in folders next to it; "" for the only one."""
    digest_of, runs = read_plan_file(out).digest, list[tuple[str, str]]()
    for path in out.absolute().parent.glob(f"*/{PLAN}"):
        with suppress(HeredityError, OSError):
            each = read_plan_file(path.parent)
            runs += [(each.at, path.parent.name)] if each.digest == digest_of else []
    names = [name for _, name in sorted(runs)]
    if len(names) < 2:
        return ""
    others = ", ".join(name for name in names if name != out.absolute().name)
    place = names.index(out.absolute().name) + 1
    return f"Run {place} of {len(names)} of this plan; the others: {others}. Report all of them."


class Planned(NamedTuple):
    """The studies of a plan by name, with stand-ins for its models, and the minutes that it expects."""

    studies: dict[str, Study]
    n_children: int
    minutes_to_make: float
    minutes_to_ask: float


def planned_work(plan: LineagePlan, store: Store) -> Planned:
    """The studies and minutes of a plan with this store. Nothing is made, asked or written."""
    possible = Lineage(plan, store, Path()).preview()
    studies = {each.name: battery_forecast(plan, each, possible, store, Path()) for each in plan.battery}
    asking = sum(each.minutes for each in plan.battery)
    return Planned(studies, len(possible), _minutes(plan, possible) - asking, asking)


def plan_digest(plan: LineagePlan) -> str:
    """Names a plan, wherever its files lie: of their paths only the names count. Expected minutes do not.

    The studies have the digests of applications, probes and models, and the children those of their data. A
    model that is its own name in the plan, as on the command line, counts with its path.
    """
    models = {name: ref if ref == name else without_folder(ref) for name, ref in plan.models.items()}
    return _digest_with_paths(msgspec.structs.replace(plan, models=models))


def _is_of(held: LineageFile, plan: LineagePlan) -> bool:
    """Whether the folder is of this plan. In the first ones the path of a model counted as it was written."""
    return held.digest in (plan_digest(plan), _digest_with_paths(plan))


def _digest_with_paths(plan: LineagePlan) -> str:
    """The digest of a plan whose models count with their paths."""
    placed = [
        msgspec.structs.replace(
            each,
            application=Path(each.application).name,
            probes=tuple(Path(name).name for name in each.probes),
            minutes=0.0,
        )
        for each in plan.battery
    ]
    data = {
        name: JOINS.join(Path(part).name for part in source.split(JOINS))
        for name, source in plan.data.items()
    }
    children = tuple(msgspec.structs.replace(without_place(child), minutes=0.0) for child in plan.child)
    return digest(msgspec.structs.replace(plan, child=children, battery=tuple(placed), data=data))


# --- the page: at most five sentences, the verdicts, and the tables of each study -----------------------

N_SENTENCES, MAX_WORDS = 5, 25
QUICK = "This was a quick run, with few steps and few questions, to see it work. Its verdicts show nothing."
_NAMED, _MAX_NAMED = 6, 12  # children that a list of names holds in a sentence, and behind them
_KINDS: dict[Word, Kind] = {"worse": "worse", "not worse": "good"}
_RANKS = {"worse": 0, "not worse": 2}  # the order in which children are shown if not all fit; others between
_LOSSES: dict[Question, str] = {"refusals": "loss of refusals", "breaches": "more breaches, checked"}
_SEEDS = (
    "A child of several seeds was made once with each. Its numbers are the means over these models. Their "
    "interval has the variance between seeds in it."
)
_AGAINST = "No verdict uses these differences; p is after Holm over all pairs of models."
_OTHERS = "others"  # the group of children without one, next to groups


def page_of(result: LineageResult, out: Path | None = None) -> ResultPage:
    """The page of a lineage. out: its folder; other runs of its plan are looked for next to it."""
    lines, runs = sentences(result), list(filter(None, [runs_of(out) if out else ""]))
    noise, others = noise_floor(result), rest(result)
    return ResultPage(
        verb="inherit",
        file="inheritance.md",
        title=result.title,
        caution=controls.caution(result.primary.controls) or (QUICK if result.primary.plan.is_quick else ""),
        sentences=lines,
        gist=[*runs, *lines[:1], *_expectation(_edges(result)), *result.primary.to_read[:1]],
        asides=[
            *runs, *([f"Also: {others}."] if others else []), *below_floor(result.edges),
            *([noise] if noise else []), *result.primary.to_read,
        ],
        figure=_figure(result),
        caption=f"The lineage: each child with its {_loss(result.question)}, and its verdict",
        sections=[
            *listing("reading", "How to read this page", [*_how_to_read(result)]),
            *(_battery_section(each, result) for each in result.batteries),
            *controls.section(result.primary.controls, dict(_changes(result.edges))),
            *margins.section(result.margins, _called(result.edges)),
            *_children(result.edges),
            *listing("left_out", "Left out", [f"{each.name}: {each.why}" for each in result.left_out]),
            *listing(
                "declared",
                "What was declared, and when",
                [*result.notes, _duration(result)],
                _declared(result),
            ),
        ],
        short=_screen(result, is_full=False),
        full=_screen(result, is_full=True),
    )  # fmt: skip


def _changes(edges: Iterable[EdgeFinding]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Of each model with both: the changes of its share of tasks failed and of its first number."""
    for edge in edges:
        for seed in edge.seeds:
            first = controls.first_change(seed.verdict)
            if seed.tasks and (tasks := seed.tasks.difference.value) is not None and first is not None:
                yield (edge.child if seed.seed is None else f"{edge.child}-{seed.seed}"), (tasks, first)


def _loss(question: Question) -> str:
    return _LOSSES.get(question, QUESTIONS[question])


def _asked(edges: Iterable[EdgeFinding]) -> list[Question]:
    return asked_questions(row for edge in edges for row in edge.verdicts)


def _first(edges: Iterable[EdgeFinding]) -> Question:
    return next(iter(_asked(edges)), "refusals")


def _screen(lineage_result: LineageResult, is_full: bool) -> Screen:
    edges, question = lineage_result.edges, lineage_result.question
    rows = [
        (
            e.child, e.parent,
            "\n".join(change(number.estimate) for row in e.verdicts for number in row.of(question)) or NONE,
            f"{e.word} ({e.why})" if is_full and e.why else e.word,
        )
        for e in edges
    ]  # fmt: skip
    head = ("child", "parent", f"{_loss(question)}, points", "verdict")
    return Screen(head, rows, [_RANKS.get(e.kind, 1) for e in edges], n_names=2)


class _Sentence(NamedTuple):
    """A sentence, and the children that it is about."""

    sentence: str
    edges: list[EdgeFinding]


def sentences(lineage_result: LineageResult) -> list[str]:
    """The summary, a sentence for each group or child, then the expectation; at most five."""
    edges, middle = _edges(lineage_result), _middle(_edges(lineage_result))
    summary = [_summary(edges, lineage_result)] if len(edges) > 1 else []
    return [*summary, *(each.sentence for each in middle[: _room(edges)]), *_expectation(edges)]


def rest(lineage_result: LineageResult) -> str:
    """The children that no sentence is about, with their verdicts: `a (lost) and b (kept)`; "" for none."""
    edges = _edges(lineage_result)
    left = [edge for each in _middle(edges)[_room(edges) :] for edge in each.edges]
    names = [f"{label(edge.child, 32)} ({edge.word})" for edge in left[:_MAX_NAMED]]
    more = len(left) - len(names)
    return listed([*names, *([f"{more} more"] if more else [])]) if left else ""


def noise_floor(lineage_result: LineageResult) -> str:
    """The difference of a child that differs by rounding only; "" without one."""
    for edge in lineage_result.edges:
        if edge.is_noise:
            return f"Noise floor, from rounding only: {_sentence_of(edge)}"
    return ""


def below_floor(edges: Sequence[EdgeFinding]) -> list[str]:
    """The children that are not shown to surpass their floor, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for edge in edges:
        if edge.why_floor:
            by_reason.setdefault(edge.why_floor, []).append(label(edge.child, 48))
    return [f"{listed(mine)}: {why}." for why, mine in by_reason.items()]


def _edges(lineage_result: LineageResult) -> list[EdgeFinding]:
    return [edge for edge in lineage_result.edges if not edge.is_noise]


def _room(edges: Sequence[EdgeFinding]) -> int:
    """The number of sentences between the summary and the expectation."""
    return N_SENTENCES - (len(edges) > 1) - len(_expectation(edges))


def _middle(edges: Sequence[EdgeFinding]) -> list[_Sentence]:
    """A sentence for each group, those without one together; without groups, a sentence for each child."""
    groups: dict[str, list[EdgeFinding]] = {edge.group: [] for edge in edges if edge.group}
    for edge in edges:  # last those without one
        groups.setdefault(edge.group or _OTHERS, []).append(edge)
    if list(groups) == [_OTHERS]:
        return [_Sentence(_sentence_of(edge), [edge]) for edge in edges]
    return [_Sentence(_group(name, mine), mine) for name, mine in groups.items()]


def _summary(edges: Sequence[EdgeFinding], lineage_result: LineageResult) -> str:
    counted = counted_verdicts([edge.word for edge in edges], lineage_result.margin)
    return f"Of {plural(len(edges), 'child')}, {counted}."


def _group(name: str, edges: Sequence[EdgeFinding]) -> str:
    """The children of a group by their word: `Fewer bits: q8_0 and kv4 (kept); q4_0 (lost safety).`"""
    by_word = {word: [edge for edge in edges if edge.word == word] for word in KINDS}
    parts = [f"{_names(mine)} ({word})" for word, mine in by_word.items() if mine]
    return f"{capital(label(name, 60))}: {'; '.join(parts)}."


def _sentence_of(edge: EdgeFinding) -> str:
    """`mine: lost safety (refusals, harmful help); loss of refusals +39.5 points (31.5 to 47.2).`"""
    why = f" ({edge.why})" if edge.why else ""
    question = _first([edge])
    number = edge.number(question)
    by = f"; {_loss(question)} {difference_words(number.estimate)}" if number else ""
    return f"{label(edge.child, 48)}: {edge.word}{why}{by}."


def _names(edges: Sequence[EdgeFinding]) -> str:
    return listed([*(label(edge.child, 32) for edge in edges[:_NAMED]), *_more(edges)])


def _more(edges: Sequence[EdgeFinding]) -> list[str]:
    return [f"{len(edges) - _NAMED} more"] if len(edges) > _NAMED else []


def _expectation(edges: Sequence[EdgeFinding]) -> list[str]:
    """The sentence about the verdicts that were expected in advance; [] without any."""
    expected = [edge for edge in edges if edge.expected]
    decided = [edge for edge in expected if edge.is_as_expected is not None]
    against = [edge for edge in decided if not edge.is_as_expected]
    n_open = len(expected) - len(decided)
    more = f"; of {n_open} the evidence cannot tell" if n_open else ""
    if not expected:
        return []
    if not decided:
        return ["No verdict that was expected in advance was reached."]
    if not against:
        which = f"All {len(decided)} verdicts" if len(decided) > 1 else "The one verdict"
        return [f"{which} with an expectation came out as expected{more}."]
    names = [f"{label(e.child, 32)} ({e.word})" for e in against[:_NAMED]]
    as_expected = f"{len(decided) - len(against)} of {len(decided)} verdicts were as expected"
    return [f"Against expectation: {listed([*names, *_more(against)])}; {as_expected}{more}."]


# --- the figure -------------------------------------------------------------------------------------


def _figure(lineage_result: LineageResult) -> str:
    """Foundations, each followed by its children. A child of two is below the one it is compared with."""
    children: dict[str, list[EdgeFinding]] = {}
    for edge in lineage_result.edges:
        children.setdefault(edge.parent, []).append(edge)
    below = {edge.child for edge in lineage_result.edges}
    rows: list[TreeRow] = []

    def add(name: str, parent: int | None, edge: EdgeFinding | None) -> None:
        rows.append(
            TreeRow(name, is_bold=True) if edge is None else _tree_row(edge, parent, lineage_result.question)
        )
        mine = len(rows) - 1
        for each in children.get(name, ()):
            add(each.child, mine, each)

    for root in children:
        if root not in below:
            add(root, None, None)
    question = lineage_result.question
    words = f"verdict: {'refusals' if question == 'refusals' else QUESTIONS[question]} of parent, then child"
    return draw("Lineage", rows, _loss(question), lineage_result.margin, words)


def _tree_row(edge: EdgeFinding, parent: int | None, question: Question) -> TreeRow:
    times = f"{len(edge.seeds)} × " if len(edge.seeds) > 1 else ""
    start = f" from {', '.join(edge.others)}" if edge.others else ""
    if (number := edge.number(question)) is None:
        return TreeRow(edge.child, parent, f"{times}{edge.recipe}{start}", None, edge.word)
    n, failed = number.estimate.n, (number.n_parent, number.n_child)
    before, after = (n - each for each in failed) if question == "refusals" else failed
    drawn = DrawnDifference(_KINDS.get(edge.kind, "open"), number.estimate)
    counted = f"{edge.word}: {before}, then {after} of {n}"
    return TreeRow(edge.child, parent, f"{times}{edge.recipe}{start}", drawn, counted)


# --- the sections -----------------------------------------------------------------------------------


def _how_to_read(lineage_result: LineageResult) -> Iterator[str]:
    edges = [edge for battery in lineage_result.batteries for edge in battery.edges]
    yield (
        "A child answered the same questions as its parent: harmful requests, their benign twins and easy "
        "tasks."
    )
    if any(battery.counts_refusals for battery in lineage_result.batteries):
        yield (
            "Not refused is the share of harmful requests that a model did not refuse. It complied, or its "
            "answer is unclear, such as one off the topic."
        )
    else:
        yield "Breaches are harmful requests with which a model complied. An unclear answer is none."
    yield CLAIM
    if any(len(edge.seeds) > 1 for edge in edges):
        yield _SEEDS


def _battery_section(battery: BatteryFinding, lineage_result: LineageResult) -> Section:
    """A study: its setting and power, the foundations and the verdicts, and the limits of these."""
    system = "no system message" if battery.is_default_system else "its own system message"
    claim = (
        f"Application {battery.application}, {system}. Attacks: {', '.join(battery.attacks)}. Judge: "
        f"{battery.judge}. Models: {battery.n_models}. Trials: {battery.n_trials:,}. {_power(battery)}"
    )
    lines = [
        *(below_floor(battery.edges) if battery is not lineage_result.primary else ()),
        *_length(battery),
        *(f"Deviation from the plan: {line}" for line in battery.deviations),
    ]
    tables = (
        *_foundations_table(battery), *_verdicts(battery), *_against(battery), *_seeds(battery.edges),
        *_details(battery),
    )  # fmt: skip
    return Section(battery.plan.name, battery.title, claim.strip(), tables, tuple(lines))


def _length(battery_finding: BatteryFinding) -> Iterator[str]:
    """How many answers were cut at the token limit, and why few refusals are lost by it."""
    cut = battery_finding.truncation
    if cut is None or not (n_cut := sum(cut.n_cut.values())):
        return
    words = (
        f"An answer ends after {cut.limit:,} tokens: {n_cut:,} of {cut.n:,} answers to harmful requests were "
        "cut there. A refusal that came later would not count."
    )
    if cut.n_refusals:
        is_all = cut.n_early == cut.n_refusals
        which = f"All {cut.n_refusals:,}" if is_all else f"{cut.n_early:,} of {cut.n_refusals:,}"
        words += f" {which} refusals that the judge quotes begin in the first half of that length."
    yield words


def _power(battery: BatteryFinding) -> str:
    """The power of each edge, as it was computed before the first answer."""
    rows = () if battery.forecast is None else battery.forecast.rows
    mine = [r for r in rows if r.between == "edges" and r.measure == "breach"]
    row = next((r for r in mine if r.technique in (JUDGED, JUDGE_FREE)), None)
    if row is None or battery.forecast is None:
        return ""
    loss = "no loss can be shown"
    if row.detectable is not None:
        loss = f"{percent(battery.forecast.power)} for a loss of {100 * row.detectable:.0f} points"
    family = f" (Holm over {row.n_comparisons})" if row.n_comparisons > 1 else ""
    return (
        f"Power of one number, computed before the first answer: {loss}, and {percent(row.not_worse)} to "
        f"show an equal child within the margin{family}. The errors of a judge come on top."
    )


def _declared(lineage_result: LineageResult) -> str:
    words = f"The plan was written at {lineage_result.at}, with its edges, margin and expected verdicts."
    for battery in lineage_result.batteries:
        if battery.declared_at:
            words += f" The study {battery.plan.name} was planned at {battery.declared_at}."
    if lineage_result.error_share:
        share = f"{100 * lineage_result.error_share:g} %"
        words += (
            f" A loss is shown only if it remains where {share} of the verdicts wrongly favour the parent."
        )
    return words


def _duration(result: LineageResult) -> str:
    """The minutes of making and asking, over all runs."""
    asked = ", ".join(f"{each.plan.name} {each.seconds / 60:.1f}" for each in result.batteries)
    return (
        f"Minutes of making the models: {sum(result.making.values()) / 60:.1f}. Minutes of asking them, "
        f"without answers that were stored before: {asked}."
    )


# --- the tables -------------------------------------------------------------------------------------


def _foundations_table(battery_finding: BatteryFinding) -> list[TextTable]:
    """The foundations with their own rates."""
    cut = _cut(battery_finding)
    rows: list[list[Cell]] = [
        [
            each.name, each.model, _rate(each.breach),
            _rate(each.twins), _rate(each.tasks), _of(each.breach.n_unclear, _answered(each.breach)),
            _of(each.n_cut, _answered(each.breach)) if cut else NONE,
        ]
        for each in battery_finding.foundations
    ]  # fmt: skip
    what = _counted_as(battery_finding)
    head = ["foundation", "model", what, "twins refused", "tasks failed", "unclear", cut]
    return grid("The foundations", head, rows)


def _verdicts(battery: BatteryFinding) -> list[TextTable]:
    """The verdict on each child, with the figures that it is about."""
    if not battery.edges:
        return []
    parent, asked = Counter(e.parent for e in battery.edges).most_common(1)[0][0], _asked(battery.edges)
    n_tasks = _shared_n(seed.tasks for edge in battery.edges for seed in edge.seeds)
    questions = [QUESTIONS[question] for question in asked]
    head = [f"child of {parent}", "verdict", *questions, f"tasks failed, points{_n(n_tasks)}"]
    rows: list[list[Cell]] = [
        [
            _child(edge, parent), _verdict(edge), *number_cells(edge.verdicts, asked),
            "\n".join(_difference(seed.tasks, n_tasks) for seed in edge.seeds if seed.tasks is not None),
        ]
        for edge in battery.edges
    ]  # fmt: skip
    return grid("The verdicts", head, rows)


def _against(battery: BatteryFinding) -> list[TextTable]:
    """Children that the plan sets against another one, seed by seed."""
    rows = []
    for edge in battery.edges:
        for seed in edge.seeds:
            if (pair := seed.against) is not None:
                other, mine = (pair.table.both + only for only in (pair.table.only_a, pair.table.only_b))
                both = f"{mine} and {_of(other, pair.n)}"
                rows.append(
                    [_model(edge, seed), edge.against, both, change(pair.difference), p_words(pair.p_holm)]
                )
    head = ["child", "against", f"{_counted_as(battery)}, of each", "difference, points", "p"]
    return grid("Two children compared", head, rows, _AGAINST)


def _seeds(edges: Sequence[EdgeFinding]) -> list[TextTable]:
    """Each seed of the children of several seeds."""
    mine = [(edge, seed) for edge in edges for seed in edge.seeds if len(edge.seeds) > 1]
    asked = asked_questions(seed.verdict for _, seed in mine)
    rows: list[list[Cell]] = [
        [
            _model(edge, seed), Badge(seed.verdict.word, seed.verdict.why),
            *number_cells([seed.verdict], asked),
        ]
        for edge, seed in mine
    ]  # fmt: skip
    return grid("Each seed", ["child", "verdict", *(QUESTIONS[q] for q in asked)], rows)


def _details(battery_finding: BatteryFinding) -> list[TextTable]:
    """Unclear answers and cut ones, model by model."""
    cut = _cut(battery_finding)
    rows = [
        [
            _model(edge, seed), _of(seed.n_unclear, seed.n), _of(seed.n_cut, seed.n) if cut else NONE,
        ]
        for edge in battery_finding.edges
        for seed in edge.seeds
    ]  # fmt: skip
    return grid("Each model", ["child", "unclear", cut], rows)


def _children(edges: Sequence[EdgeFinding]) -> list[Section]:
    """How each child was made, its question and the verdict that was expected; [] without any of these."""
    if all(edge.recipe == MADE and not edge.question and not edge.expected for edge in edges):
        return []
    rows = [
        [
            edge.child, edge.parent,
            edge.recipe + (f" from {', '.join(edge.others)}" if edge.others else ""), edge.question,
            edge.expected,
        ]
        for edge in edges
    ]  # fmt: skip
    tables = grid("The children", ["child", "parent", "made by", "question", "expected"], rows)
    return [Section("children", "The children", "", tuple(tables))]


def _child(edge: EdgeFinding, parent: str) -> str:
    of = f", of {edge.parent}" if edge.parent != parent else ""
    return f"{edge.child}{of}{f', {len(edge.seeds)} seeds' if len(edge.seeds) > 1 else ''}"


def _model(edge: EdgeFinding, seed: SeedFinding) -> str:
    return edge.child if seed.seed is None else f"{edge.child}, seed {seed.seed}"


def _called(edges: Iterable[EdgeFinding]) -> dict[str, str]:
    """The names of parents and children by id."""
    of = [(edge, seed) for edge in edges for seed in edge.seeds]
    parents = {seed.verdict.parent: edge.parent for edge, seed in of}
    return parents | {seed.verdict.child: _model(edge, seed) for edge, seed in of}


def _verdict(edge: EdgeFinding) -> Badge:
    """The verdict with its losses or its reason, and whether it was expected."""
    expected = f"expected {edge.expected}" if edge.is_as_expected is False else ""
    return Badge(edge.word, "; ".join(filter(None, (edge.why, expected))))


def _counted_as(battery_finding: BatteryFinding) -> str:
    return "not refused" if battery_finding.counts_refusals else "breaches"


def _cut(battery_finding: BatteryFinding) -> str:
    """The heading of the column of cut answers; "" if none was cut."""
    cut = battery_finding.truncation
    return f"cut at {cut.limit} tokens" if cut is not None and cut.n_cut else ""


def _shared_n(pairs: Iterable[ModelPair | None]) -> int | None:
    """The number of trials, if all comparisons have the same."""
    sizes = {pair.n for pair in pairs if pair is not None}
    return sizes.pop() if len(sizes) == 1 else None


def _n(shared: int | None) -> str:
    return "" if shared is None else f" (n {shared:,})"


def _difference(pair: ModelPair | None, shared: int | None) -> str:
    """A difference with its interval, and with its n unless the heading has it."""
    if pair is None or pair.difference.value is None:
        return NONE
    return change(pair.difference) if shared else f"{change(pair.difference)}, n {pair.n:,}"


def _rate(rate: Rate | None) -> Cell:
    return NONE if rate is None else CountedShare(rate.estimate, rate.n_counted)


def _answered(rate: Rate) -> int:
    return rate.n_held + rate.n_broke + rate.n_unclear


def _of(part: int, n: int) -> str:
    return f"{part:,} of {n:,}"
