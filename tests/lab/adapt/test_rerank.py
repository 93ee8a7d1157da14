"""A task whose retrieval has a reranker: what its models read, what it costs, and what is refused later."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("bm25s")

from heredity.application.retrieval import Retrieval
from heredity.core.errors import BadInput, NotComparable
from heredity.lab import adapt as run
from heredity.lab.task import read_task
from heredity.lineage.store import Store
from heredity.study.plan import read_plan
from tests.lab.adapt.tasks import loader, task_file
from tests.support import studies
from tests.support.cross_encoders import TinyReranker
from tests.support.errors import raises

RERANK = '[retrieval]\npassages = 2\nrerank = "tiny-reranker"\ncandidates = 12\n'


def test_the_way_shows_what_the_reranker_chose_and_counts_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    store, out = Store(), tmp_path / "out"
    model = store.grow(TinyReranker(), []).record
    task = read_task(task_file(tmp_path / "task", '["retrieval"]', RERANK, "scripted:careful"))
    run.adapt(task, store, out, engine_loader=loader())
    manual = run.read_adapt_file(out).manual
    assert manual is not None and manual.rerank_id == model.id
    files = [each.stat().st_size for each in (out / "manual.index").glob("*-*")]
    assert manual.bytes == sum(files) + sum(each.bytes for each in model.files)
    search = Retrieval(manual.path, 2, hash=manual.hash, rerank="tiny-reranker", candidates=12).identified()
    plain = Retrieval(manual.path, 2, hash=manual.hash)
    texts = {probe.id: probe.turns[0] for probe in read_plan(out / run.QUALITY).probes}
    rows = [row for row in studies.responses(out / run.QUALITY) if row.exchanges[0].retrieved]
    asked = {texts[row.probe]: row.exchanges[0].retrieved for row in rows}
    assert len(asked) == 24
    assert all(search.search(text) == shown for text, shown in asked.items())
    assert any(plain.search(text) != shown for text, shown in asked.items())
    other = Store(tmp_path / "other")
    other.grow(TinyReranker(seed=1), [])
    with raises(NotComparable, "another-study"):
        run.adapt(task, other, out, engine_loader=loader())


def test_a_search_that_cannot_be_is_refused_with_its_line(tmp_path: Path) -> None:
    path = task_file(tmp_path, '["retrieval"]', RERANK.replace("12", "1"), "scripted:careful")
    with raises(BadInput, "bad-setting") as error:
        read_task(path)
    assert path.read_text().splitlines()[error.value.line - 1] == "candidates = 1"
