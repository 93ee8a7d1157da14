"""The time that a plan will take, computed before the first request.

Promises: a time has two ends, the fastest and the slowest that is expected. No model is loaded or asked. It
is what an earlier study of the same application took on this machine. Without one, it is that of
lineage/speeds.py.
Leaves to others: which studies were earlier (forecast.py), and the money (usage.py).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from heredity.application.guards import load_guard
from heredity.core.errors import HeredityError
from heredity.core.progress import TimeLeft, TimeSpan, Work
from heredity.core.records import Message, Request
from heredity.lineage.speeds import ModelSpeed, speed_seconds
from heredity.redteam import attacks
from heredity.study.outcomes import in_scope
from heredity.study.plan import Plan, PlannedModel, read_plan
from heredity.study.storage import run_records

_COUNTED = 1000  # probes whose requests are counted; more are scaled up
_MIN_ASKED = 30  # trials of an earlier study that tell the speed of a model
_TRIED = 4  # probes for which guards prepare a request
_TO_READ = 0.6  # of the time of a token that is written: one of a prompt that no other request shares
_MODELS_OF_SEARCH = ("embed", "embed_id", "rerank", "rerank_id", "candidates")  # a forecast loads no model
_LETTERS = 4  # of a token, about
_OF_MEASURED = (0.7, 1.6)  # of the time of an earlier study; the load of a machine changes
# Seconds of what comes around the answers. A model is loaded, and its batch widths may have to be measured.
_AT_ONCE, _LOAD, _MEASURE = TimeSpan(0.05, 1.0), TimeSpan(5.0, 40.0), TimeSpan(20.0, 120.0)
_JUDGE, _ESTIMATE = TimeSpan(0.001, 0.02), TimeSpan(2.0, 15.0)  # a row by rules; estimates and report
_LEAST = 1e-4  # of a trial of a scripted model


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
        work["load", m] = Work(1, _AT_ONCE if is_far else _LOAD if is_tuned else _MEASURE, ("load",))
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
        found = {name: each for name, each in _measured(path).items() if name not in measured}
        if found.keys() & {model.id for model in plan.models}:
            measured |= found
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
    loaded = [attacks.planned(spec) for spec in names or plan.attacks]
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
                prepared = rule.prepare(request, plan.application)
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
