"""How many workers ask a study, and where they run.

Study(models, application).run(workers=3)
Study(models, application).run(workers=Workers(8, on="ray"))
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from heredity.application.toolbox import Toolbox
from heredity.core.errors import UsageError
from heredity.core.files import Rows
from heredity.core.host import Device
from heredity.core.records import Model
from heredity.core.version import __version__
from heredity.engines.remote.budget import Calls
from heredity.study.attack_context import FOUND, SearchResult
from heredity.study.plan import Grid, Plan, PlannedModel
from heredity.study.resume import EarlierRuns
from heredity.study.runner import FolderRecorder
from heredity.study.workers import ray_cluster
from heredity.study.workers.driver import LATE_SECONDS, Driver
from heredity.study.workers.messages import RemoteSettings, Setup
from heredity.study.workers.pool import Pool
from heredity.study.workers.processes import ProcessPool

MOST_WORKERS = 4096


class Place(NamedTuple):
    """The folder of the store, and the device that the user named, if any."""

    store: Path
    device: Device | None


@dataclass(frozen=True)
class Workers:
    """Workers that ask the trials of a study; each holds one loaded model.

    n             how many
    on            "": processes of this machine; "ray": a Ray cluster that is started here; "ray://HOST:PORT":
                  a running one
    late_seconds  a worker that is silent for so long while it answers gives its trials back
    loader        "package.module:function" that makes an Engine of a Grown model in each worker; "" for the
                  usual one
    calls         how models behind an API are called; None: the defaults. Each worker has its share of the
                  concurrency
    """

    n: int
    on: str = ""
    late_seconds: float = LATE_SECONDS
    loader: str = ""
    calls: Calls | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST_WORKERS:
            raise UsageError(
                f"A study has 1 to {MOST_WORKERS:,} workers, not {self.n}.", code="workers-number"
            )
        if self.on:
            ray_cluster.address_of(self.on)
        budget = None if self.calls is None else self.calls.budget
        if budget is not None and (budget.max_tokens, budget.max_cost) != (None, None):
            raise UsageError(
                "Workers cannot share a budget: one process counts it. A model behind an API waits rather "
                "than computes, so leave --workers out and raise --concurrency.",
                code="workers-budget",
            )

    @classmethod
    def of(cls, workers: Workers | int | None, has_own_loader: bool) -> Workers | None:
        """The workers that these settings mean; None for none.

        has_own_loader: the study has an `engine_loader`. Raises UsageError if workers need it.
        """
        found = cls(workers) if isinstance(workers, int) else workers
        if found is not None and has_own_loader and not found.loader and found.calls is None:
            raise UsageError(
                "Workers load the models themselves: an `engine_loader` stays in its process. Name it "
                'instead: Workers(n, loader="package.module:function").',
                code="workers-loader",
            )
        return found

    def _pool(self, records: Sequence[Model], device: Device | None) -> Pool:
        if not self.on:
            return ProcessPool(self.n, has_gpus=device is None or str(device) == "cuda")
        has_weights = any(record.files for record in records)
        return ray_cluster.RayPool(ray_cluster.address_of(self.on), self.n, has_weights)

    @contextmanager
    def driver(
        self,
        grid: Grid,
        recorder: FolderRecorder,
        earlier: EarlierRuns,
        records: Sequence[Model],
        place: Place,
        replayed: Toolbox | None = None,
    ) -> Iterator[Driver]:
        """The driver of these workers. They end with the block, at once if it raises.

        replayed: the tools of the application. No worker runs them; each serves the recorded results.
        """
        pool = self._pool(records, place.device)
        calls = self.calls or Calls()
        each = max(1, calls.concurrency // self.n)
        setup = Setup(
            plan=grid.plan,
            plan_seal=recorder.seal,
            models=tuple(records),
            store=str(place.store.absolute()),
            device="" if place.device is None else str(place.device),
            folder=str(recorder.folder),
            host=platform.node(),
            version=__version__,
            found=tuple(Rows(recorder.folder / FOUND, SearchResult)),
            remote=RemoteSettings(dict(calls.keys), dict(calls.prices), each),
            loader=self.loader,
            results=None if replayed is None else tuple(replayed.results),
        )
        driver = Driver(pool, self.n, setup, grid, recorder, earlier, self.late_seconds)
        try:
            yield driver
            driver.close()
        finally:
            pool.close()
            driver.end_runs()


def asked_models(plan: Plan) -> list[PlannedModel]:
    """The models that are loaded in a study: those of the plan without guards, and the attacker."""
    attacker = [plan.attacker] if isinstance(plan.attacker, PlannedModel) else []
    return [*(model for model in plan.models if not model.of), *attacker]
