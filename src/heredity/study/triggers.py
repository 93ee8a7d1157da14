"""The words that a plan's attacks search for on the embedding model of its index, before the first question.

Promises: each search runs once per folder, and its result is on disk before the next one (found.jsonl). The
plan then holds all of them, so they are part of its trials. A twin has the trigger of its probe.
Leaves to others: the search itself (application/retrieval/triggers.py), and the documents (planted.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from heredity.application.retrieval.store import searching_in
from heredity.core.progress import Meter, Watch
from heredity.core.records import digest, encode
from heredity.redteam import attacks
from heredity.redteam.attacks import TriggerWanted
from heredity.study.attack_context import SearchCache
from heredity.study.plan import PLAN, Plan, read_plan
from heredity.study.planted import PlannedTrigger, owner_of

if TYPE_CHECKING:
    from heredity.application.retrieval.dense import Embedder
    from heredity.lineage.store import Store


class _Search(NamedTuple):
    probe: str
    document: int
    wanted: TriggerWanted


def with_triggers(plan: Plan, folder: Path, watch: Watch | None = None, store: Store | None = None) -> Plan:
    """The plan with the words that its attacks search for: those of the folder's plan, if it has one.

    store: with the embedding model, if that is not the usual one.
    """
    searches = _searches(plan)
    if not searches or plan.triggers is not None:
        return plan
    if (folder / PLAN).exists():
        return msgspec.structs.replace(plan, triggers=read_plan(folder).triggers)
    cache, meter = SearchCache(folder), Meter(watch, "search", len(searches))
    found = []
    with searching_in(store):
        for each in searches:
            found.append(_found(plan, each, cache))
            meter.tick()
    meter.close()
    return msgspec.structs.replace(plan, triggers=tuple(found))


def forecast(plan: Plan, folder: Path) -> str:
    """The cost of the searches of a plan that is not saved yet; "" for none. Times two steps."""
    searches = _searches(plan)
    if not searches or (folder / PLAN).exists():
        return ""
    embedder, first = _embedder(plan), searches[0].wanted
    from heredity.application.retrieval import triggers

    for _ in range(2):  # the first time also reads the vocabulary
        start = time.perf_counter()
        triggers.search(embedder, first.question, first.passage, 1, 0)
        seconds = time.perf_counter() - start
    n_steps = sum(each.wanted.n_steps for each in searches)
    return (
        f"First the words of {len(searches):,} planted documents are searched for on the embedding model: at "
        f"most {n_steps:,} gradients and {n_steps * triggers.CANDIDATES:,} forward passes, about "
        f"{math.ceil(n_steps * seconds / 60)} min."
    )


def _searches(plan: Plan) -> list[_Search]:
    """The searches of a plan, each once: a larger budget has the documents of a smaller one."""
    return list(dict.fromkeys(_all_searches(plan)))


def _all_searches(plan: Plan) -> Iterator[_Search]:
    if plan.application.retrieval is None:
        return
    for attack in map(attacks.planned, plan.attacks):
        for probe in plan.probes:
            if owner_of(probe, plan) == probe.id:
                yield from (_Search(probe.id, i, each) for i, each in enumerate(attack.wanted(probe)))


def _found(plan: Plan, search: _Search, cache: SearchCache) -> PlannedTrigger:
    """The result of a search, which is not run again if the cache has it."""
    embedder, wanted = _embedder(plan), search.wanted
    seed = int(digest([plan.seed, search.probe, search.document])[:12], 16)

    def run() -> str:
        from heredity.application.retrieval import triggers

        text = triggers.search(embedder, wanted.question, wanted.passage, wanted.n_steps, seed)
        return encode(PlannedTrigger(search.probe, search.document, wanted.n_steps, *text)).decode()

    value = cache.keep("trigger", embedder.model.id, search, seed)(run)
    return msgspec.json.decode(value, type=PlannedTrigger)


def _embedder(plan: Plan) -> Embedder:
    """The embedding model of the plan's index. Raises Unavailable without torch, and as `opened` does."""
    from heredity.application.retrieval.index import opened

    retrieval = plan.application.retrieval
    assert retrieval is not None
    return opened(Path(retrieval.index), retrieval.read_hash).embedder
