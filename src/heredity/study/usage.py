"""The trials, requests and tokens that a plan takes, computed before the first request.

Promises: nothing is asked and nothing is tokenized, so that the figures are of the size that a budget needs.
Leaves to others: prices (engines/remote/budget.py), and the time (duration.py).
"""

from __future__ import annotations

from heredity.core.progress import time_words
from heredity.core.records import encode
from heredity.engines.remote.budget import BYTES_PER_TOKEN, Usage
from heredity.study.duration import n_requests
from heredity.study.outcomes import n_in_scope
from heredity.study.plan import Plan
from heredity.study.wording import plural


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
