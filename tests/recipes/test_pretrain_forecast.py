"""A base that cannot fit is refused before its first step; beside what was predicted stands what it took."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import NotComparable, OutOfMemory, UsageError
from heredity.lab import scaling_laws
from heredity.lineage.store import Store
from heredity.recipes.pretrain import recipe as pretrain
from heredity.recipes.pretrain import training
from heredity.train import loop
from heredity.train.loop import DistContext
from tests.recipes.test_pretrain import recipe as recipe
from tests.support.corpora import small_corpus as small_corpus
from tests.support.errors import raises

SHORT = {"tokens": 1024, "evaluations": 1}


def test_a_base_that_cannot_fit_is_refused_before_its_first_step(tmp_path: Path, recipe: Path) -> None:
    store = Store(tmp_path / "store")
    with raises(OutOfMemory, "out-of-memory", mentions=["GiB", "masters", "50K", "64", "heredity plan"]):
        store.grow_once(pretrain.read(recipe, SHORT | {"memory": 0.001}), [])
    assert not store.models() and not list(store.root.rglob(loop.METRICS))


def test_on_a_gpu_its_own_free_memory_counts(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: what one would say of itself is said for it, and what is refused is reckoned."""
    made = pretrain.read(recipe, SHORT)
    alone, four = (DistContext(0, n, device=torch.device("cuda", 0), mesh=object()) for n in (1, 4))
    wanted = {each: sum(training.needed(made, 4, each).values()) for each in (alone, four)}
    assert wanted[four] < wanted[alone] < sum(training.needed(made, 4).values())
    for each, size in wanted.items():
        for free, is_refused in ((size, False), (size - 1, True)):
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 << 30))
            refusal = raises(OutOfMemory, "out-of-memory", mentions=["each"]) if is_refused else nullcontext()
            with refusal, training.checked_memory(made, each) as foreseen:
                assert foreseen is None


def test_how_much_may_be_used_is_no_part_of_what_a_base_is(recipe: Path) -> None:
    assert pretrain.read(recipe, {"memory": 900.0}).settings() == pretrain.read(recipe).settings()


def test_predicted_and_measured_memory_and_time_stand_in_the_record(tmp_path: Path, recipe: Path) -> None:
    notes = Store(tmp_path / "store").grow_once(pretrain.read(recipe, SHORT), []).record.notes
    assert re.fullmatch(r"predicted 0\.\d\d GiB(, measured \d+\.\d\d GiB of growth)?", notes["memory"])
    assert re.fullmatch(r"predicted [\d,]+ s, measured [\d,]+ s", notes["time"])


def test_looks_are_foreseen_as_they_come(tmp_path: Path, recipe: Path) -> None:
    short = pretrain.read(recipe, {"tokens": 5 * 1024, "batch_size": 1024, "evaluations": 2})
    foretold = short.workload().n_evaluated
    grown = Store(tmp_path / "store").grow_once(short, [])
    rows = [json.loads(line) for line in (grown.folder / loop.METRICS).read_text().splitlines()]
    looks = sum(training.BITS_PER_BYTE in row["terms"] for row in rows)
    assert looks == 3  # behind steps 2, 4 and 5
    assert foretold == looks * min(2000, int(short.text.lengths("validation").sum()))


@pytest.mark.proof  # trains five bases
def test_a_law_is_fitted_over_runs_of_the_store_and_others_are_refused(tmp_path: Path, recipe: Path) -> None:
    store = Store(tmp_path / "store")
    runs = [
        store.grow_once(
            pretrain.read(recipe, {"tokens": tokens, "evaluations": 1, "name": f"run-{tokens}"}), []
        )
        for tokens in (512, 1024, 2048, 4096, 8192)
    ]
    found = scaling_laws.scaled(runs)
    assert [run.name for run in found.runs] == [f"run-{n}" for n in (512, 1024, 2048, 4096, 8192)]
    assert found.runs[-1].parameters == int(runs[0].record.notes["parameters"].replace(",", ""))
    assert f"{found.runs[-1].loss:.4f} bits a byte" in runs[-1].record.notes["held-out text"]
    assert found.compute.interval.low <= found.compute.interval.high
    with raises(UsageError, "bad-usage", mentions=["5"]):
        scaling_laws.scaled(runs[:4] + runs[:1])
    with raises(NotComparable, "not-comparable", mentions=["held_out"]):
        other = store.grow_once(pretrain.read(recipe, SHORT | {"validation_tokens": 500}), [])
        scaling_laws.scaled([*runs, other])
