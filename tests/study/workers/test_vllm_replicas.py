"""A vLLM server for each worker: replicas of one model, which end with their workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.engines import vllm
from heredity.lineage.store import Store
from heredity.study.spec import StudySpec
from heredity.study.study import Study
from heredity.study.workers import Workers
from tests.engines.test_vllm import STANDIN, gone, worker_of
from tests.support.studies import APPLICATION, by_index, probes
from tests.support.tiny_models import make_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for vLLM's server, which a worker finds as a user's workers find vLLM."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {STANDIN} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(vllm.WHERE, str(python))
    monkeypatch.delenv(vllm.KEY, raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


def answers(place: Path, tiny: Path, workers: Workers | None) -> dict[int, str]:
    """The answers of a study in a store of its own, by trial."""
    store = Store(place / "store")
    store.pull(str(tiny))
    study = Study(
        StudySpec([store.get("vllm:tiny")], APPLICATION, probes=probes(2), out=place / "study"), store=store
    )
    study.run(workers=workers)
    return {i: row.exchanges[-1].text for i, row in by_index(place / "study").items()}


@pytest.mark.parametrize("on", ["", pytest.param("ray", marks=pytest.mark.proof)], ids=["processes", "ray"])
def test_each_worker_asks_a_server_of_its_own_which_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str
) -> None:
    if on:
        pytest.importorskip("ray")
    tiny = make_model(tmp_path / "tiny", "llama", max_position_embeddings=2048)
    one = answers(tmp_path / "one", tiny, None)
    assert one and all("tiny heard" in text for text in one.values())
    monkeypatch.setenv("FAKE_VLLM_SECONDS", "1")  # else one worker may answer all before the other has begun
    assert answers(tmp_path / "two", tiny, Workers(2, on=on)) == one
    logs = sorted((tmp_path / "two" / "store" / "tuning").glob("*.vllm*.log"))
    assert len(logs) == 2, "both workers asked one server"
    assert all(gone(worker_of(log)) for log in logs), "a server outlived its worker"
