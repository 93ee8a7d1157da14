"""An engine that waits for a far model: many requests under way, replies as they come, some errors."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heredity import engines
from heredity.core.errors import Damaged, EngineFailure, Unavailable
from heredity.core.records import Reply, Request
from heredity.engines import scripted
from heredity.lineage.store import Store, load_engine
from heredity.lineage.types import Description, Grown
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from tests.support.errors import raises
from tests.support.processes import leaving_no_thread
from tests.support.studies import APPLICATION, by_index, plan, responses, study

MADE = plan(("scripted:mixed",))


@dataclass(frozen=True)
class Remote:
    """A model behind an address: no files, only what is needed to find it again."""

    model: str = "mixed"
    base_url: str = "https://models.example/v1"
    api: str = "openai"
    engine: str = "scripted"
    writes: str = ""

    kind = "remote"

    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "base_url": self.base_url, "api": self.api, "engine": self.engine}

    def apply(self, parents: Sequence[Grown], out: Path) -> Description:
        if self.writes:
            (out / self.writes).write_text("x")
        return Description(self.model, "unknown", "unknown", "remote")


class Far(scripted.ScriptedEngine):
    """A scripted model as if over a network: `width` calls in threads, each with a delay of its own."""

    def __init__(self, width: int = 8, fails: float = 0.0, budget: int = 10**9) -> None:
        super().__init__("mixed")
        self.numerics = "far mixed"
        self.width, self._fails, self._budget = width, fails, budget
        self.most_under_way, self.n_under_way, self.order = 0, 0, list[int]()
        self.pulled_by: set[int] = set()

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        source, is_open, calls = iter(requests), True, set[Future[Reply]]()
        with ThreadPoolExecutor(self.width) as pool:
            try:
                while True:
                    while is_open and len(calls) < self.width:
                        self.pulled_by.add(threading.get_ident())
                        try:
                            request = next(source)
                        except StopIteration:
                            is_open = False
                            break
                        if request is None:
                            break
                        if self._budget <= 0:
                            raise EngineFailure("the budget is spent")
                        self._budget -= 1
                        calls.add(pool.submit(self._call, request))
                    self.most_under_way = max(self.most_under_way, len(calls))
                    if not calls:
                        return
                    done, calls = wait(calls, return_when=FIRST_COMPLETED)
                    for call in done:
                        self.order.append(call.result().key)
                        yield call.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _call(self, request: Request) -> Reply:
        luck = random.Random(f"{request.key}{len(request.messages)}")
        time.sleep(luck.random() * 0.004)
        if luck.random() < self._fails:
            return Reply(request.key, self.render(request), "", stop="error", error="HTTP 500")
        reply = self._one(request)
        return Reply(
            reply.key,
            reply.prompt,
            reply.text,
            stop=reply.stop,
            n_tokens=len(reply.tokens),
            n_prompt_tokens=reply.n_prompt_tokens,
        )


def test_replies_in_any_order_come_to_the_same_study(tmp_path: Path) -> None:
    study(tmp_path / "near", MADE).run()
    far = Far()
    study(tmp_path / "far", MADE, lambda _: far, Store(tmp_path / "store")).run()
    assert far.most_under_way == far.width
    assert far.order != sorted(far.order)
    assert far.pulled_by == {threading.get_ident()}
    near, there = by_index(tmp_path / "near"), by_index(tmp_path / "far")
    assert {i: row.exchanges for i, row in near.items()} == {i: row.exchanges for i, row in there.items()}


def test_a_far_engine_is_kept_full_while_conversations_go_on(tmp_path: Path) -> None:
    """Later turns and new trials fill the room that a reply left, at once."""
    far = Far(width=3)
    far.numerics = ""  # nothing from the cache: how much that has by then hangs on who is quick
    study(tmp_path, MADE, lambda _: far, Store(tmp_path / "store")).ask()
    assert far.most_under_way == 3 and len(far.order) > MADE.n_trials  # more than one turn each


def test_a_call_that_fails_is_an_error_row_and_asked_again_it_is_answered(tmp_path: Path) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "out"
    found = study(folder, MADE, lambda _: Far(fails=0.2), store).run().estimates
    assert 0 < found.n_errors < MADE.n_trials
    far = Far()
    assert study(folder, MADE, lambda _: far, store).run(retry_errors=True).estimates.n_errors == 0
    assert len(far.order) <= 2 * found.n_errors  # first turns that were answered are not paid for twice


def test_a_budget_that_is_spent_stops_the_run_and_keeps_what_was_answered(tmp_path: Path) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "out"
    with raises(EngineFailure, "engine-failure", mentions=["the budget is spent", folder]):
        study(folder, MADE, lambda _: Far(budget=30), store).run()
    kept = responses(folder)
    assert 0 < len(kept) <= 30
    far = Far()
    study(folder, MADE, lambda _: far, store).run()
    assert responses(folder)[: len(kept)] == kept and len(responses(folder)) == MADE.n_trials


def test_a_study_that_stops_lets_the_engine_give_up_what_is_under_way(tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with leaving_no_thread(), pytest.raises(KeyboardInterrupt):
        study(tmp_path, MADE, lambda _: Far(), Store(tmp_path / "store")).run(stop)


# --- a model without files --------------------------------------------------------------------------


def test_a_remote_model_is_recorded_verified_and_studied(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    grown = store.grow(Remote())
    assert store.grow(Remote()) == grown
    assert (grown.record.format, grown.record.files) == ("remote", ())
    assert store.verify(grown.record) == [] and store.ready(grown) == grown
    assert grown.record.id != store.grow(Remote(base_url="https://other.example/v1", model="b")).record.id
    it = Study(
        StudySpec(["mixed", "scripted:careful"], APPLICATION, probes="planted_secret", out=tmp_path / "out"),
        store=store,
    )
    found = it.run().estimates
    assert found.n_asked == found.n_trials and found.models[0].format == "remote"
    again = Study.open(tmp_path / "out", store=store)
    (tmp_path / "out" / "responses.jsonl").unlink()
    again.run()


def test_a_remote_model_that_wrote_a_file_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with raises(Damaged, "damaged", mentions=["weights.bin"]):
        store.grow(Remote(writes="weights.bin"))
    assert store.models() == []


def test_a_record_that_was_turned_to_another_address_does_not_answer(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    grown = store.grow(Remote())
    path = grown.folder.parent / "model.json"
    path.write_text(path.read_text().replace("models.example", "evil.example"))
    with raises(Damaged, "damaged", mentions=["model.json"]):
        load_engine(store.get("mixed"), store)


def test_the_recorded_engine_answers_and_one_that_is_not_here_is_said_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert engines.choose(store.grow(Remote()).record) == "scripted"
    assert engines.choose(store.grow(Remote(engine="")).record) == "remote"
    lost = store.grow(Remote(engine="torsch"))
    with raises(Unavailable, "unavailable", mentions=["mixed", "torsch", "torch"]):
        load_engine(lost, store)
