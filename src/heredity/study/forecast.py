"""The power and the duration of a plan, computed before the first request.

    for line in forecast_lines(plan, forecast_study(plan, folder)): print(line)

Promises: the power is that of the tests that the study will run, at the level of Holm's first step. The
assumptions are part of the forecast. Nothing is asked.

The assumptions are measured ones if an earlier study of all these models lies next to the folder. A copy of
this very study does not count. Otherwise they are the defaults below, which are near what small models show
on the suite `core`.
"""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from heredity.application.guards import load_guard
from heredity.core.errors import HeredityError
from heredity.core.progress import TimeLeft, TimeSpan, TrialMeter, Watch, Work, time_words
from heredity.core.records import Message, Request, digest, encode
from heredity.core.sanitize import plural
from heredity.engines.remote.services import BYTES_PER_TOKEN, Usage
from heredity.lineage.store import ModelSpeed, speed_seconds
from heredity.redteam import attacks
from heredity.redteam.checks import is_judged
from heredity.stats.edges import kept_power, loss_power
from heredity.stats.intervals import EffectiveN
from heredity.stats.power import (
    POWER,
    design_effect,
    n_for_not_worse,
    not_worse_power,
    paired_power,
    sequential_n_for_margin,
    sequential_power,
    shown_margin,
)
from heredity.stats.sequential import nominal_levels, one_sided_levels
from heredity.study.estimates import ALL, JUDGE_FREE, JUDGED, PROBE_KINDS, Estimates, Measure
from heredity.study.findings.edge_verdicts import planned_tests
from heredity.study.intervals import Intervals
from heredity.study.outcomes import in_scope, is_part, n_in_scope
from heredity.study.plan import (
    Analysis,
    ComparisonFamily,
    ForecastRow,
    Plan,
    PlannedModel,
    StudyForecast,
    read_plan,
)
from heredity.study.storage import ESTIMATES, read_estimates, run_records
from heredity.study.wording import public_words


# --- usage -------------------------------------------------------------------------------------------
# The trials, requests and tokens that a plan takes, computed before the first request. Promises: nothing is
# asked and nothing is tokenized, so that the figures are of the size that a budget needs.
def expected_usage(plan: Plan, n_thoughts: int = 0) -> Usage:
    """The prompt and answer tokens of one model, if every answer is as long as the plan allows.

    n_thoughts: tokens for thinking before an answer. Earlier turns of a conversation are not counted again.
    """
    n = n_requests(plan)
    layer = plan.application
    system = "" if layer.system is None else layer.system
    n_shared = len(encode([system, layer.few_shot, layer.passages, layer.tools]))
    own = [sum(map(len, probe.turns)) + len(probe.passage) for probe in plan.probes]
    if layer.retrieval is not None:
        n_shared += layer.retrieval.most_bytes()
    prompt = (n_shared + sum(own) / max(1, len(own))) / BYTES_PER_TOKEN
    return Usage(round(n * prompt), round(n * (layer.decoding.max_tokens + n_thoughts)), is_estimated=True)


def dry_run_lines(plan: Plan, n_answered: int, seconds: tuple[float, float]) -> list[str]:
    """The size of a plan and its time, in lines.

    n_answered: trials that need no request any more. seconds: of all trials, at best and at worst.
    """
    counts = zip(plan.shape, ("model", "attack", "probe", "sample"), strict=True)
    product = " x ".join(plural(n, what) for n, what in counts)
    n, n_most = n_in_scope(plan), round(n_requests(plan)) * len(plan.models)
    part = ""
    if plan.limit is not None:
        part = f"; {plan.limit.n_asked:,} of {plural(plan.limit.n_chosen, 'chosen probe')} and their twins"
    left = max(0, n - n_answered) / n
    open_ = f"{n_answered:,} are answered, the others take" if n_answered else "They take"
    return [
        f"Dry run: {product}: {plural(n, 'trial')}, at most {plural(n_most, 'request')}{part}.",
        f"{open_} {time_words((seconds[0] * left, seconds[1] * left))}. Nothing was asked.",
    ]


_COUNTED = 1000  # probes whose requests are counted; more are scaled up
_MIN_ASKED = 30  # trials of an earlier study that tell the speed of a model
_TRIED = 4  # probes for which guards prepare a request
_TO_READ = 0.6  # of the time of a token that is written: one of a prompt that no other request shares
_MODELS_OF_SEARCH = ("embed", "embed_id", "rerank", "rerank_id", "candidates")  # a forecast loads no model
_LETTERS = 4  # of a token, about
_OF_MEASURED = (0.7, 1.6)  # of the time of an earlier study; the load of a machine changes
# Seconds of what comes around the answers. A model is loaded, and its batch widths may have to be measured.
_LOAD_ELSEWHERE, _LOAD, _MEASURE = TimeSpan(0.05, 1.0), TimeSpan(5.0, 40.0), TimeSpan(20.0, 120.0)
_JUDGE, _ESTIMATE = TimeSpan(0.001, 0.02), TimeSpan(2.0, 15.0)  # a row by rules; estimates and report
_LEAST = 1e-4  # of a trial of a scripted model


# --- duration ----------------------------------------------------------------------------------------
# The time that a plan will take, computed before the first request. Promises: a time has two ends, the
# fastest and the slowest that is expected. No model is loaded or asked. It is what an earlier study of the
# same application took on this machine. Without one, it is that of lineage/store.py.
class Measured(NamedTuple):
    """The seconds of one request in an earlier study, and its trials of this model."""

    seconds: float
    n_trials: int


def expected_seconds(
    plan: Plan, earlier: Sequence[Path], speeds: Mapping[str, ModelSpeed]
) -> tuple[tuple[float, float], str]:
    """Seconds from the fastest to the slowest, and the folder whose runs measured them; "" for a guess.

    earlier: folders of studies in the same application. speeds: by model id.
    """
    each, source = _of_requests(plan, earlier, speeds)
    n = n_requests(plan)
    low, high = (sum(span[end] for span in each) * n for end in (0, 1))
    return (round(low, 1), round(high, 1)), source


def time_left(plan: Plan, earlier: Sequence[Path], speeds: Mapping[str, ModelSpeed]) -> TimeLeft:
    """The time left of a study, before its first answer.

    Its parts are the attacks on each model, by number as the trials are; loading each model, ("load", m);
    "judge" and "estimate".
    """
    work = dict[Hashable, Work]()
    n_asked = (in_scope(plan).sum(axis=1) * plan.samples).tolist()
    n_each = [n_requests(plan, a) / max(1, n) for a, n in zip(plan.attacks, n_asked, strict=True)]
    for m, (model, span) in enumerate(zip(plan.models, _of_requests(plan, earlier, speeds)[0], strict=True)):
        is_far = model.format in ("scripted", "remote")
        is_tuned = bool((speed := speeds.get(model.of or model.id)) and speed.tokens_per_second)
        work["load", m] = Work(1, _LOAD_ELSEWHERE if is_far else _LOAD if is_tuned else _MEASURE, ("load",))
        for a, attack in enumerate(plan.attacks):
            seconds = TimeSpan(*(max(_LEAST, n_each[a] * each) for each in span))
            causes = ("ask", model.name, f"with {attack}")
            work[m * len(plan.attacks) + a] = Work(int(n_asked[a]), seconds, causes)
    work["judge"] = Work(sum(n_asked) * len(plan.models), _JUDGE, ("judge",))
    work["estimate"] = Work(1, _ESTIMATE, ("estimate",))
    return TimeLeft(work)


def _of_requests(
    plan: Plan, earlier: Sequence[Path], speeds: Mapping[str, ModelSpeed]
) -> tuple[list[tuple[float, float]], str]:
    """Seconds of one request to each model, at best and at worst, and the folder of `expected_seconds`."""
    measured: dict[str, Measured] = {}
    source = ""
    for path in earlier:
        by_name = {name: each for name, each in _measured(path).items() if name not in measured}
        if by_name.keys() & {model.id for model in plan.models}:
            measured |= by_name
            source = source or path.name
    spans = list[tuple[float, float]]()
    for model in plan.models:
        if model.format == "scripted":
            spans.append((0.0, 0.0))
            continue
        if model.id in measured:
            fast, slow = measured_seconds(measured[model.id], plan.n_per_model)
        else:
            source = ""
            n_tokens = plan.application.decoding.max_tokens + _TO_READ * _n_added(plan, model)
            fast, slow = speed_seconds(round(n_tokens), speeds.get(model.of or model.id))
        spans.append((fast, slow))
    return spans, source if len(measured) else ""


def n_requests(plan: Plan, *names: str) -> float:
    """The most requests of one model: the turns of each attack, or of these, over all probes and samples."""
    context, some = attacks.context_for(plan.application), plan.probes[:_COUNTED]
    loaded = [attack for attack in plan.applied() if not names or attack.spec in names]
    n = sum(attack.queries(probe, context) for attack in loaded for probe in some)
    return n * plan.samples * len(plan.probes) / len(some)


def _n_added(plan: Plan, model: PlannedModel) -> float:
    """The tokens that a model's own guards add to a request, such as passages, over a few probes."""
    if model.guards is None:
        return 0.0
    some = plan.probes[:: max(1, len(plan.probes) // _TRIED)][:_TRIED]
    requests = [Request(0, (Message("user", probe.turns[-1]),)) for probe in some if probe.turns]
    n_letters = 0
    for spec in model.guards:
        settings = {key: value for key, value in spec.settings.items() if key not in _MODELS_OF_SEARCH}
        settings |= {"method": "bm25"} if "method" in settings else {}
        try:
            rule = load_guard(replace(spec, settings=settings))
            for request in requests:
                prepared = rule.prepare(request, plan.application.facts)
                n_letters += _n_letters(prepared) - _n_letters(request)
        except HeredityError:  # an index that is not there yet: the study itself will say so
            continue
    return n_letters / _LETTERS / max(1, len(requests))


def _n_letters(request: Request) -> int:
    return sum(len(message.content) for message in request.messages)


def measured_seconds(measured: Measured, n: int) -> TimeSpan:
    """Seconds of one request in a study of `n` trials. One of fewer trials had smaller, slower batches."""
    batches = min(1.0, math.sqrt(measured.n_trials / n))
    return TimeSpan(_OF_MEASURED[0] * batches * measured.seconds, _OF_MEASURED[1] * measured.seconds)


def _measured(path: Path) -> dict[str, Measured]:
    """Seconds of one request by model id, from the runs in a folder on this machine that asked enough."""
    try:
        plan, totals = read_plan(path), dict[str, tuple[float, int]]()
        for run in run_records(path):
            if run.host == platform.node() and run.seconds:
                seconds, n = totals.get(run.model, (0.0, 0))
                totals[run.model] = (seconds + run.seconds, n + run.n_asked - run.n_cached)
        each = n_requests(plan) / plan.n_per_model
    except (HeredityError, OSError):
        return {}
    return {id_: Measured(seconds / n / each, n) for id_, (seconds, n) in totals.items() if n >= _MIN_ASKED}


BASELINE, UNCLEAR = 0.2, 0.25
CORRELATION = 0.4  # of the wordings of one behaviour
RELATED = 0.5  # parent and child differ on this share of the trials on which unrelated models would
_MAX_FOLDERS, _MAX_STUDIES = 500, 5  # next to the study's own, and read
_MIN_PAIRS = 30  # shared trials from which an earlier study tells how often two models differ
_MIN_DISCORDANCE = 0.02  # no study is planned for models that never differ
_RUNS = 200  # of a simulated study
_NO_NUMBER = 1e9  # behaviours, where none would do
_FEW = 0.5  # below this power an answer is called unlikely


class Assumed(NamedTuple):
    """The assumptions about the answers; `source` is the earlier study's folder, or "", `models` its own."""

    baseline: float = BASELINE
    discordance: float = 2 * BASELINE * (1 - BASELINE)  # of two equal, unrelated models
    unclear: float = UNCLEAR
    source: str = ""
    models: tuple[str, ...] = ()
    at: str = ""


def forecast_study(
    plan: Plan, folder: Path, speeds: Mapping[str, ModelSpeed] | None = None
) -> StudyForecast | None:
    """The forecast of a plan whose study will be in `folder`; None for one that compares nothing.

    speeds: what is known of each model, by id.
    """
    declared = plan.analysis
    if declared is None or not declared.families:
        return None
    earlier = list(_earlier(plan, folder))
    assumed = next((a for each in earlier if (a := _assumed(plan, *each)) is not None), Assumed())
    seconds, speed = expected_seconds(plan, [each for each, _ in earlier], speeds or {})
    kinds = {family.between for family in declared.families}
    discordance: dict[str, float] = {
        kind: assumed.discordance * (1 if kind == "pairs" else RELATED) for kind in sorted(kinds)
    }
    cells = _ForecastCells(plan, declared, assumed.unclear)
    rows = [
        cells.row(family, technique, discordance[family.between], is_pooled=technique in family.scopes)
        for family in declared.families
        for technique in (
            *family.scopes,
            *([] if plan.stops_early else _techniques(plan, family.measure)),
        )
        if cells.sizes(family.measure, technique)
    ]
    return StudyForecast(
        POWER, assumed.baseline, discordance, assumed.unclear, CORRELATION, assumed.source, seconds, speed,
        tuple(rows), assumed.models, assumed.at,
    )  # fmt: skip


def forecast_seconds(plan: Plan, folder: Path, speeds: Mapping[str, ModelSpeed]) -> tuple[float, float]:
    """The seconds that all trials of a plan take, at best and at worst, of any plan."""
    return expected_seconds(plan, [each for each, _ in _earlier(plan, folder)], speeds)[0]


def trial_meter(
    plan: Plan, folder: Path, speeds: Mapping[str, ModelSpeed], watch: Watch | None
) -> TrialMeter:
    """Counts the trials of a plan whose study begins now; the time left is at first the forecast's."""
    left = time_left(plan, [each for each, _ in _earlier(plan, folder)], speeds)
    return TrialMeter(watch, n_in_scope(plan), left, len(plan.probes) * plan.samples)


def _techniques(plan: Plan, measure: Measure) -> list[str]:
    return list(dict.fromkeys(p.technique for p in plan.probes if p.kind == PROBE_KINDS[measure]))


class _ForecastCells:
    """The rows of one plan."""

    def __init__(self, plan: Plan, declared: Analysis, unclear: float) -> None:
        self._plan, self._declared, self._unclear = plan, declared, unclear
        self._alpha = Intervals.of(plan).alpha
        self._attacks = plan.applied()
        self._edges = planned_tests(plan)

    def row(
        self, family: ComparisonFamily, technique: str, discordance: float, *, is_pooled: bool
    ) -> ForecastRow:
        """The row of a scope, or of one technique among all techniques of its measure."""
        sizes = self.sizes(family.measure, technique)
        n_trials, n_pairs = sum(sizes.values()), family.n // len(family.scopes)
        n_tests = family.n if is_pooled else n_pairs * len(_techniques(self._plan, family.measure))
        # The numbers of all edges are one family; models behind guards have one of their own.
        is_of_edges = family.between == "edges" and is_pooled and self._edges.n_edges > 0
        n_tests = self._edges.n_numbers if is_of_edges else n_tests
        # Of decided trials, those count that both decided.
        kept = (1 - self._unclear) ** 2 if self._declared.endpoint == "decided_trials" else 1.0
        effective = _effective([size * kept for size in sizes.values()], discordance)
        is_of_refusals = self._declared.endpoint == "not_refused" and family.measure == "breach"
        mine = [p for p in self._plan.probes if p.kind == "breach" and is_part(p, technique)]
        is_open = not is_of_refusals or not all(is_judged(p.check) for p in mine)
        alpha, unclear = self._alpha / n_tests, (self._declared.unclear_share if is_open else 0.0)
        if is_of_edges and not self._plan.stops_early:
            shares = self._of_edges(effective, discordance, alpha, unclear)
        else:
            shares = self._shares(len(sizes), effective, discordance, alpha, unclear, is_pooled)
        worth = effective.at(1 - 2 * self._alpha) / len(sizes)  # of a cluster, in independent trials
        needed = math.ceil(
            self._n_for_margin(discordance, is_of_edges) / (1 if self._plan.is_until_decided else worth)
        )
        return ForecastRow(
            family.between, family.measure, technique, n_tests, n_trials, len(sizes),
            round(effective.at(1 - self._alpha), 1), *shares, needed,
        )  # fmt: skip

    def sizes(self, measure: Measure, technique: str) -> Counter[tuple[str, str]]:
        """The trials of each behaviour of a row; an attack for other techniques asks none."""
        sizes: Counter[tuple[str, str]] = Counter()
        for p in self._plan.probes:
            if p.kind == PROBE_KINDS[measure] and is_part(p, technique):
                sizes[p.technique, p.cluster] += sum(attack.covers(p) for attack in self._attacks)
        return Counter({behaviour: n * self._plan.samples for behaviour, n in sizes.items() if n})

    def _n_for_margin(self, discordance: float, is_of_edges: bool) -> float:
        margin, edges = self._plan.margin, self._edges
        if is_of_edges and not self._plan.stops_early:
            one = self._alpha / edges.n_edges
            holds = lambda n: kept_power(n, discordance, edges.runs, margin, one) >= POWER  # noqa: E731
            return smallest(holds, 10.0**6, 1.0) or _NO_NUMBER
        if self._plan.is_until_decided:
            return _sequential_n(margin, discordance, self._alpha)
        return _fixed_n(
            margin, discordance, one_sided_levels(self._plan.information or (1.0,), self._alpha)[-1]
        )

    def _shares(
        self, n_clusters: int, effective: EffectiveN, discordance: float, alpha: float, unclear: float,
        is_pooled: bool,
    ) -> tuple[float | None, float, float | None]:  # fmt: skip
        """Detectable difference, power of "not worse", and the margin that is shown."""
        margin = self._plan.margin
        if self._plan.is_until_decided:
            ends = tuple(n_clusters * i // len(self._plan.ends) for i in range(1, len(self._plan.ends) + 1))
            power = _sequential(ends, discordance, 0.0, margin, self._alpha)
            shown = smallest(
                lambda d: _sequential(ends, discordance + d, d, None, alpha) >= POWER, 1 - discordance, 0.01
            )
            within = None
            if is_pooled:
                within = smallest(
                    lambda m: _sequential(ends, discordance, 0.0, m, self._alpha) >= POWER, 0.99
                )
            return self._worse(shown, unclear), round(power, 3), within
        # The last planned analysis keeps nearly all of the level; earlier ones only add power.
        last = self._plan.information or (1.0,)
        alpha, one_sided = nominal_levels(last, alpha)[-1], one_sided_levels(last, self._alpha)[-1]
        n, n_sided = int(effective.at(1 - alpha)), int(effective.at(1 - 2 * one_sided))
        spread = discordance + unclear**2 * self._unclear
        detectable = smallest(lambda d: paired_power(n, min(1.0, spread + d), d, alpha) >= POWER)
        power = not_worse_power(n_sided, discordance, margin, one_sided)
        within = shown_margin(n_sided, discordance, POWER, one_sided) if is_pooled else None
        return self._worse(detectable, unclear), round(power, 3), None if within is None else round(within, 3)

    def _of_edges(
        self, effective: EffectiveN, discordance: float, alpha: float, unclear: float
    ) -> tuple[float | None, float, float | None]:
        """As `_shares`, of one number of an edge, with the variance of a run; without the judge's errors."""
        margin, runs, one = self._plan.margin, self._edges.runs, self._alpha / self._edges.n_edges
        n, n_sided = effective.at(1 - alpha), effective.at(1 - 2 * one)
        spread = discordance + unclear**2 * self._unclear
        detectable = smallest(
            lambda d: loss_power(n, min(1.0, spread + d), d, runs, margin, alpha, self._alpha) >= POWER
        )
        within = smallest(lambda m: kept_power(n_sided, discordance, runs, m, one) >= POWER, 0.99)
        power = kept_power(n_sided, discordance, runs, margin, one)
        return self._worse(detectable, unclear), round(power, 3), within

    def _worse(self, detectable: float | None, unclear: float) -> float | None:
        """With what the declared share of unclear answers takes away; None above 1."""
        if detectable is None:
            return None
        share = 0.0 if self._declared.endpoint == "decided_trials" else unclear
        needed = detectable + share * self._unclear
        return round(needed, 3) if needed <= 1 else None


@lru_cache(maxsize=64)
def _fixed_n(margin: float, discordance: float, alpha: float) -> int:
    return n_for_not_worse(margin, discordance, POWER, alpha)


@lru_cache(maxsize=64)
def _sequential_n(margin: float, discordance: float, alpha: float) -> int:
    rng = np.random.default_rng(0)
    return sequential_n_for_margin(margin, discordance, rng, POWER, alpha, runs=_RUNS).n_most


@lru_cache(maxsize=4096)
def _sequential(
    ends: tuple[int, ...], discordance: float, difference: float, margin: float | None, alpha: float
) -> float:
    rng = np.random.default_rng(0)  # the same plan, the same forecast
    return sequential_power(ends, min(1.0, discordance), rng, difference, margin, alpha, runs=_RUNS)


def smallest(holds: Callable[[float], bool], most: float = 1.0, step: float = 1e-3) -> float | None:
    """The smallest share that holds, to a `step`; None if not even `most` does."""
    low, high = 0.0, most
    if not holds(high):
        return None
    while high - low > step:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return round(high, 3)


def _effective(sizes: Sequence[float], discordance: float) -> EffectiveN:
    """The effective n of clusters of these sizes, as a study estimates it from the spread of its clusters."""
    n, squares = sum(sizes), sum(size * size for size in sizes)
    floor = n * n / squares
    informative = sum(1 - (1 - min(discordance, 1.0)) ** size for size in sizes)
    estimated = n / design_effect(squares / n, CORRELATION)
    return EffectiveN(math.floor(n), len(sizes), floor, estimated, max(round(informative) - 1, 0))


# --- earlier studies ------------------------------------------------------------------------------


def _earlier(plan: Plan, folder: Path) -> Iterator[tuple[Path, Estimates]]:
    """The newest finished studies next to `folder` that asked a model of the plan in its application."""
    ids, studies = {model.id for model in plan.models}, []
    try:
        with os.scandir(folder.parent) as entries:
            for entry in islice(entries, _MAX_FOLDERS):
                path = Path(entry.path)
                if path != folder and (path / ESTIMATES).is_file():
                    studies.append(((path / ESTIMATES).stat().st_mtime, path))
    except OSError:
        return
    for _, path in sorted(studies, reverse=True)[:_MAX_STUDIES]:
        try:
            estimates = read_estimates(path)
        except (HeredityError, OSError):
            continue  # a folder of another kind is not this study's concern
        same_application = estimates.application.digest == plan.application.digest
        if same_application and ids & {card.id for card in estimates.models}:
            yield path, estimates


def _assumed(plan: Plan, path: Path, estimates: Estimates) -> Assumed | None:
    """The findings of an earlier study of all the plan's models; None if it compared no two of them closely.

    None for a copy of the plan's own study, too: its findings are not known before its answers.
    """
    ids = {model.id for model in plan.models}
    if not ids <= {card.id for card in estimates.models} or estimates.study == digest(plan):
        return None
    rates = [
        rate
        for rate in estimates.rates
        if rate.model in ids
        and rate.technique == JUDGE_FREE
        and rate.attack == ALL
        and rate.measure == "breach"
    ]
    pairs = [
        pair
        for pair in estimates.pairs
        if {pair.a, pair.b} <= ids and pair.technique == JUDGE_FREE and pair.n >= _MIN_PAIRS
    ]
    counts = [(rate.n_broke, rate.n_broke + rate.n_held + rate.n_unclear, rate.n_unclear) for rate in rates]
    if not pairs or not all(n for _, n, _ in counts):
        return None
    baseline = min(broke / n for broke, n, _ in counts)
    # What is left without the difference itself, and at least half of what unrelated models would have.
    noise = [(p.table.only_a + p.table.only_b - abs(p.table.only_a - p.table.only_b)) / p.n for p in pairs]
    return Assumed(
        round(baseline, 3),
        round(max(sum(noise) / len(noise), baseline * (1 - baseline), _MIN_DISCORDANCE), 3),
        round(sum(unclear for _, _, unclear in counts) / sum(n for _, n, _ in counts), 3),
        path.name,
        tuple(card.name for card in estimates.models if card.id in ids),
        estimates.circumstances.at[:10],
    )


# --- words ----------------------------------------------------------------------------------------

# A stop leaves a technique too few behaviours, at a time that its own answers decide.
_GIVEN_UP = "Stopping early gives up claims about single techniques."
_TITLES = {JUDGE_FREE: "breaches, by checks", JUDGED: "breaches, by judge", ALL: "over-refusal"}


def forecast_lines(plan: Plan, forecast: StudyForecast) -> list[str]:
    """The forecast of the primary comparisons in a few lines of at most 80 columns."""
    declared = plan.analysis
    if declared is None or declared.primary is None:
        return []
    between, measure = declared.primary.between, declared.primary.measure
    rows = [row for row in forecast.rows if row.between == between]
    pooled = [row for row in rows if row.technique in _TITLES]
    abilities = {probe.technique for probe in plan.probes if probe.is_baseline}  # nothing is claimed of these
    techniques = [
        row
        for row in rows
        if row.technique not in _TITLES and row.technique not in abilities and row.measure == measure
    ]
    titles = _TITLES | ({JUDGED: "not refused"} if declared.endpoint == "not_refused" else {})
    of = "two models" if between == "pairs" else "parent and child"
    n_tests = pooled[0].n_comparisons if pooled else 1  # of the deciding scope; other rows have their own
    holm = f" (Holm over {n_tests:,})" if n_tests > 1 else ""
    return [
        f"What this plan can show of {of} with {100 * forecast.power:g} % power{holm}:",
        *(_row(titles[row.technique], row, plan.margin) for row in pooled),
        *(
            _row("one technique", row, plan.margin)
            for row in sorted(techniques, key=lambda row: row.n_effective)[:1]
        ),
        *([_GIVEN_UP] if plan.stops_early else []),
        *_other_pairs(declared),
        *(_doubt(pooled[0], plan.margin) if pooled else ()),
        *(_stops(plan, pooled[0], forecast.discordance[between]) if pooled else ()),
        *_assumptions(forecast, between),
    ]


def left_out(plan: Plan) -> list[str]:
    """Lines that name the techniques and public sets of which the plan asks nothing; [] if none is."""
    lines = [words] if (words := public_words(plan.public or ())) else []
    asked = {probe.technique for probe in plan.probes}
    skipped = dict.fromkeys(each.probe.partition("/")[0] for each in plan.skipped if each.probe != "*")
    if not (names := [name for name in skipped if name not in asked]):
        return lines
    why = "they do not apply to this application (the report has each reason)"
    return [*lines, f"Not asked: {', '.join(names)}: {why}."]


def _row(title: str, row: ForecastRow, margin: float) -> str:
    worse = "cannot show worse" if row.detectable is None else f"worse by {100 * row.detectable:.0f} points"
    not_worse = f"not worse by {100 * margin:g}: {row.not_worse:.2f}"
    size = f"{title:<19} {plural(row.n_clusters, 'behaviour'):>15}"
    return f"  {f'{size}  {worse}':<55}  {not_worse}"


def _other_pairs(declared: Analysis) -> Iterator[str]:
    """In a plan whose primary comparisons are edges: the part of the pairs of models."""
    pairs = [each for each in declared.families if each.between == "pairs" and each.measure == "breach"]
    if declared.is_of_edges and pairs:
        n = pairs[0].n // len(pairs[0].scopes)
        yield f"Its {plural(n, 'pair')} of models are a second family; no verdict on a child uses it."
        if JUDGED in pairs[0].scopes:
            yield "The errors of the judge come on top, unless people read pairs of answers."


def _doubt(row: ForecastRow, margin: float) -> tuple[str, ...]:
    """The claim that is unlikely to be shown, and the margin or behaviours that would show it."""
    if row.not_worse >= POWER - 0.005:
        return ()
    expected = 'Expect "not enough evidence" on' if row.not_worse < _FEW else "It may fall short of"
    margins = "no margin" if row.margin is None else f"a margin of {math.ceil(100 * row.margin)}"
    if row.clusters_needed >= _NO_NUMBER:
        what = f"That takes {margins}: runs differ by more than any behaviours show."
        return f'{expected} "not worse by {100 * margin:g} points" of equal models.', what
    step = int(10 ** max(0, len(str(row.clusters_needed)) - 2))
    more = -(-row.clusters_needed // step) * step
    behaviours = f"about {plural(more, 'behaviour')}: {more - row.n_clusters:,} more"
    if more <= row.n_clusters:  # the power is a saw in n: this plan is where it falls short by little
        behaviours = "a few more behaviours"
    return (
        f'{expected} "not worse by {100 * margin:g} points" of equal models.',
        f"That takes {margins}, or {behaviours}.",
    )


def _stops(plan: Plan, row: ForecastRow, discordance: float) -> Iterator[str]:
    """The analyses of a group-sequential plan, and the difference that stops at the first."""
    if not plan.information:
        return
    *early, _ = plan.information
    level = nominal_levels(plan.information, Intervals.of(plan).alpha / row.n_comparisons)[0]
    n = int(row.n_effective * plan.information[0])
    clear = smallest(lambda d: paired_power(n, discordance + d, d, level) >= POWER, 1 - discordance)
    shares = " and ".join(f"{100 * share:.0f} %" for share in early)
    of = "no difference" if clear is None else f"a difference of {100 * clear:.0f} points"
    yield f"Analyses at {shares}: {of} stops it at the first."


def _assumptions(forecast: StudyForecast, between: str) -> Iterator[str]:
    known = "Assumed" if forecast.source else "Guessed"
    shares = (forecast.baseline, forecast.unclear, forecast.discordance[between])
    broke, unclear, differ = (f"{100 * share:.0f} %" for share in shares)
    time = time_words(forecast.seconds)
    # Models that differ in their rates differ on more trials: a detectable difference may exceed this share.
    yield f"{known}: {broke} breaches, {unclear} unclear, equal models differ on {differ}; {time}."
    if forecast.source:
        of = f" of {forecast.source_at}" if forecast.source_at else ""
        named = ", ".join(forecast.source_models) or "models of this plan"
        yield _shortened(f"From the study {forecast.source[:24]}{of}, with {named}.")


def _shortened(line: str, width: int = 80) -> str:
    return line if len(line) <= width else line[: width - 4].rstrip(" ,") + " ..."
