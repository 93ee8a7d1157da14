"""The phases that engines report: the watch of their store gets them, in order."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.progress import PREPARE, Progress
from heredity.core.records import Decoding, Message, Request
from heredity.engines import GENERAL
from heredity.engines.torch import autotune, decoder
from heredity.formats import weights
from heredity.lineage.store import Store, load_engine


def phases(seen: list[Progress]) -> list[str]:
    """The names of the phases, each once for as long as it lasts."""
    return [name for name, _ in groupby(each.phase for each in seen if each.phase)]


def request(key: int) -> Request:
    told = Message("system", "You sell tents and maps. " * 4)
    return Request(key, (told, Message("user", "the fox")), Decoding(max_tokens=2), n_shared=1)


def test_the_torch_engine_reports_its_phases_in_order(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "WIDTHS", (4, 8))  # other ones: tests.support.probes then measures
    store, seen = Store(tmp_path), list[Progress]()
    grown = store.pull(str(tiny_llama))
    with store.report.to(seen.append):
        engine = load_engine(grown, store)
        assert phases(seen) == [
            "loading the libraries", "loading", "loading the libraries", "loading layers",
            "measuring widths", "checking widths",
        ]  # fmt: skip
        layers = [each for each in seen if each.phase == "loading layers"]
        assert layers[0].n_done == 0 and layers[0].n_total > 0
        seen.clear()
        replies = list(engine.reply([request(0), request(1)]))
    assert [reply.error for reply in replies] == [None, None]
    assert phases(seen) == ["reading the shared prompt"]  # once for both
    assert {(each.step, each.model) for each in seen} == {(PREPARE, grown.record.name)}
    assert seen[-1].phase == ""  # it is over
    engine.close()


def test_widths_are_counted_up_to_their_total(tiny_llama: Path) -> None:
    read = weights.read_weights(tiny_llama, torch.float32)
    seen: list[Progress] = []
    with torch.inference_mode():
        autotune.probe(decoder.Decoder(read, torch.float32), widths=(4, 8), watch=seen.append)
    counts = [each for each in seen if each.phase == "measuring widths"]
    assert counts[0].n_done == 0 and counts[0].n_total > 0
    assert all(each.n_done <= each.n_total for each in counts)


def test_kept_widths_are_not_measured_again(tiny_llama: Path, tmp_path: Path) -> None:
    store, seen = Store(tmp_path), list[Progress]()
    grown = store.pull(str(tiny_llama))
    load_engine(grown, store).close()
    with store.report.to(seen.append):
        load_engine(grown, store).close()
    assert phases(seen)[-1] == "loading layers" and "measuring widths" not in phases(seen)


def test_the_engine_of_transformers_reports_its_measuring(tiny_llama: Path, tmp_path: Path) -> None:
    store, seen = Store(tmp_path), list[Progress]()
    grown = store.get(f"{GENERAL}:{store.pull(str(tiny_llama)).record.name}")
    with store.report.to(seen.append):
        load_engine(grown, store).close()
    assert "measuring widths" in phases(seen)


def test_a_scripted_model_has_no_phases(tmp_path: Path) -> None:
    store, seen = Store(tmp_path), list[Progress]()
    with store.report.to(seen.append):
        load_engine(store.get("scripted:careful"), store)
    assert seen == []
