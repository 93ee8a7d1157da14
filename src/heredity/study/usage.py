"""The tokens that a plan takes of one model, computed before the first request.

Promises: nothing is asked and nothing is tokenized, so that the figures are of the size that a budget needs.
Leaves to others: prices (engines/remote/budget.py).
"""

from __future__ import annotations

import msgspec

from heredity.core.records import encode
from heredity.engines.remote.budget import Usage
from heredity.study.forecast import n_requests
from heredity.study.plan import Plan

_BYTES_PER_TOKEN = 3  # as in a budget's reservations: nearly any text has fewer tokens


def expected_usage(plan: Plan, n_thoughts: int = 0) -> Usage:
    """The prompt and answer tokens of one model, if every answer is as long as the plan allows.

    n_thoughts: tokens for thinking before an answer. Earlier turns of a conversation are not counted again.
    """
    n = n_requests(plan)
    layer = plan.application
    system = "" if isinstance(layer.system, msgspec.UnsetType) else layer.system
    n_shared = len(encode([system, layer.few_shot, layer.passages, layer.tools]))
    own = [sum(map(len, probe.turns)) + len(probe.passage) for probe in plan.probes]
    if not isinstance(layer.retrieval, msgspec.UnsetType):
        n_shared += layer.retrieval.most_bytes()
    prompt = (n_shared + sum(own) / max(1, len(own))) / _BYTES_PER_TOKEN
    return Usage(round(n * prompt), round(n * (layer.decoding.max_tokens + n_thoughts)), is_estimated=True)
