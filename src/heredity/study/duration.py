"""The time that a plan will take, computed before the first request.

Promises: a time has two ends, the fastest and the slowest that is expected. Nothing is loaded or asked. It
is what an earlier study of the same application took on this machine. Without one, it is that of
lineage/speeds.py.
Leaves to others: which studies were earlier (forecast.py), and the money (usage.py).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from heredity.core.errors import HeredityError
from heredity.lineage.speeds import ModelSpeed, speed_seconds
from heredity.redteam import attacks
from heredity.study.plan import Plan, read_plan
from heredity.study.storage import run_records

_COUNTED = 1000  # probes whose requests are counted; more are scaled up
_MIN_ASKED = 30  # trials of an earlier study that tell the speed of a model
_OF_MEASURED = (0.8, 1.3)  # of the time of an earlier study


def expected_seconds(
    plan: Plan, earlier: Sequence[Path], speeds: Mapping[str, ModelSpeed]
) -> tuple[tuple[float, float], str]:
    """Seconds from the fastest to the slowest, and the folder whose runs measured them; "" for a guess.

    earlier: folders of studies in the same application. speeds: by model id.
    """
    measured: dict[str, float] = {}
    source = ""
    for path in earlier:
        found = {name: each for name, each in _measured(path).items() if name not in measured}
        if found.keys() & {model.id for model in plan.models}:
            measured |= found
            source = source or path.name
    n, low, high = n_requests(plan), 0.0, 0.0
    for model in plan.models:
        if model.format == "scripted":
            continue
        if model.id in measured:
            fast, slow = (share * measured[model.id] for share in _OF_MEASURED)
        else:
            source = ""
            fast, slow = speed_seconds(plan.application.decoding.max_tokens, speeds.get(model.of or model.id))
        low, high = low + fast * n, high + slow * n
    return (round(low, 1), round(high, 1)), source if len(measured) else ""


def n_requests(plan: Plan) -> float:
    """The most requests of one model: the turns of each attack, over all probes and samples."""
    context, some = attacks.context_for(plan.application), plan.probes[:_COUNTED]
    loaded = [attacks.planned(spec) for spec in plan.attacks]
    n = sum(attack.queries(probe, context) for attack in loaded for probe in some)
    return n * plan.samples * len(plan.probes) / len(some)


def _measured(path: Path) -> dict[str, float]:
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
    return {model: seconds / n / each for model, (seconds, n) in totals.items() if n >= _MIN_ASKED}
