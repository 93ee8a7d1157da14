"""The probe of a machine: what it keeps, what it measures again, and what a busy moment may not decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding, Message, Request
from heredity.engines import NOT_VERIFIED
from heredity.engines.chat import ChatCodec
from heredity.engines.torch import autotune
from heredity.engines.torch import decoder as _decoder
from heredity.engines.torch.engine import TorchEngine
from heredity.formats import weights
from heredity.formats.adapted import apply_adapter
from heredity.lineage.store import Store, load_engine
from tests.support.clock import BusyClock
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import make_model


def test_the_probe_keeps_its_result_and_measures_again_when_the_arithmetic_changed(
    tiny_llama: Path, tmp_path: Path
) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    path = tmp_path / "tuning.json"
    with torch.inference_mode():
        first = autotune.tune(decoder, path, widths=(4, 8))
        assert autotune.tune(decoder, path, widths=(4, 8, 16)).widths == first.widths
        path.write_text(path.read_text().replace(first.fingerprint, "0" * 16))
        assert autotune.tune(decoder, path, widths=(4,)).widths == (4,)


def test_a_tuning_of_a_busy_machine_is_measured_again_at_rest(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    path = tmp_path / "tuning.json"
    with torch.inference_mode():
        monkeypatch.setattr(autotune, "_load", lambda: 5.0)
        busy = autotune.tune(decoder, path, widths=(4,))
        assert busy.load == 5.0 and autotune.read_tuning(path) == busy
        assert autotune.tune(decoder, path, widths=(4, 8)) == busy
        monkeypatch.setattr(autotune, "_load", lambda: 0.5)
        assert autotune.read_tuning(path) is None
        rested = autotune.tune(decoder, path, widths=(4, 8))
        monkeypatch.setattr(autotune, "_load", lambda: 0.0)
        assert "8" in rested.tokens_per_second and autotune.tune(decoder, path, widths=(4,)) == rested


def test_a_busy_moment_does_not_keep_the_batch_narrow(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    step, clock = decoder.step, BusyClock(busy_until=0)

    def timed(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: Any = None) -> torch.Tensor:
        is_first_of_wider = clock.now > 0 and len(tokens) > 4 and len(tokens) not in reached
        reached.add(len(tokens))
        clock.work((1 + len(tokens) / 100) * (30 if is_first_of_wider else 1))
        return step(prefix, slots, tokens, lengths, n_slots)

    reached: set[int] = set()
    monkeypatch.setattr(decoder, "step", timed)
    with torch.inference_mode():
        found = autotune.probe(decoder, widths=(4, 8, 16, 32), clock=clock)
    assert set(found.tokens_per_second) == {"4", "8", "16", "32"}
    assert found.tokens_per_second["32"] == max(found.tokens_per_second.values())


def test_the_probe_goes_no_further_where_wider_is_slower(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    step, clock = decoder.step, BusyClock(busy_until=0)

    def timed(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: Any = None) -> torch.Tensor:
        clock.work(len(tokens) ** 2)
        return step(prefix, slots, tokens, lengths, n_slots)

    monkeypatch.setattr(decoder, "step", timed)
    with torch.inference_mode():
        found = autotune.probe(decoder, widths=(4, 8, 16, 32), clock=clock)
    assert set(found.tokens_per_second) == {"4", "8", "16"} and found.widths == (4,)


def test_a_tuning_kept_under_an_older_rule_is_measured_again(tiny_llama: Path, tmp_path: Path) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    path = tmp_path / "tuning.json"
    with torch.inference_mode():
        new = autotune.tune(decoder, path, widths=(4,))
    assert autotune.read_tuning(path) == new
    path.write_text(path.read_text().replace(f'"schema": {autotune.SCHEMA}', '"schema": 1'))
    assert autotune.read_tuning(path) is None
    # as files of the first schema were: without its number, with rows that were prefilled together
    path.write_text(path.read_text().replace('"schema": 1', '"prefill_rows": {"16": 2}'))
    assert autotune.read_tuning(path) is None


def test_an_engine_whose_bits_moved_in_the_probe_says_so_in_its_name(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    step = decoder.step

    def restless(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: Any = None) -> torch.Tensor:
        return step(prefix, slots, tokens, lengths, n_slots) + 1e-3 * slots.capacity

    with torch.inference_mode():
        proven = autotune.probe(decoder, widths=(4,))
        monkeypatch.setattr(decoder, "step", restless)
        moved = autotune.probe(decoder, widths=(4, 8))
    assert proven.is_proven and not moved.is_proven and len(moved.widths) == 1
    told = [
        TorchEngine(decoder, ChatCodec(tiny_llama), tiny_llama, tuning).name for tuning in (proven, moved)
    ]
    assert [NOT_VERIFIED in name for name in told] == [False, True]


def test_the_witness_notices_a_width_with_other_bits(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    step = decoder.step

    def crooked(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: Any = None) -> torch.Tensor:
        logits = step(prefix, slots, tokens, lengths, n_slots)
        return logits + 1e-3 if len(tokens) == 8 else logits

    monkeypatch.setattr(decoder, "step", crooked)
    with torch.inference_mode():
        found = autotune.probe(decoder, widths=(4, 8, 16))
    assert 8 not in found.widths or found.widths == (8,)


def test_a_number_of_slots_that_moves_the_bits_is_not_used(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _decoder.Decoder(weights.read_weights(tiny_llama, torch.float32), torch.float32)
    step, clock = decoder.step, BusyClock(busy_until=0)

    def crooked(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: Any = None) -> torch.Tensor:
        clock.work(1)  # each width takes as long: the widest is best, and the others have other bits
        logits = step(prefix, slots, tokens, lengths, n_slots)
        return logits + (0 if len(tokens) == 16 and n_slots != 8 else 1)

    monkeypatch.setattr(decoder, "step", crooked)
    with torch.inference_mode():
        found = autotune.probe(decoder, widths=(4, 8, 16), clock=clock)
    assert found.widths == (16,) and found.n_slots == (4,)
    pools = [
        TorchEngine(decoder, ChatCodec(tiny_llama), tiny_llama, found, width).pool for width in (None, 4)
    ]
    assert [pool._n_slots for pool in pools] == [(4,), (4,)]


def _decoder_of(folder: Path) -> _decoder.Decoder:
    return _decoder.Decoder(weights.read_weights(folder, torch.float32), torch.float32)


def _parent_and_child(folder: Path) -> list[_decoder.Decoder]:
    """Two models of one shape, with other numbers."""
    spreads = 0.02, 0.04
    return [
        _decoder_of(make_model(folder / str(spread), "llama", initializer_range=spread)) for spread in spreads
    ]


def test_a_model_of_a_known_shape_takes_its_tuning_after_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[_decoder.Decoder] = []
    probe = autotune.probe

    def counted(
        decoder: _decoder.Decoder, widths: tuple[int, ...] = (4, 8), watch: object = None
    ) -> autotune.Tuning:
        probed.append(decoder)
        return probe(decoder, widths)

    monkeypatch.setattr(autotune, "probe", counted)
    parent, child = _parent_and_child(tmp_path)
    other = _decoder_of(make_model(tmp_path / "qwen", "qwen2"))
    home = tmp_path / "tuning"
    with torch.inference_mode():
        first = autotune.tune(parent, home / "parent", widths=(4, 8))
        second = autotune.tune(child, home / "child", widths=(4, 8))
        assert probed == [parent]
        assert second.widths == first.widths and second.pass_widths == first.pass_widths
        assert second.fingerprint != first.fingerprint  # its own numbers
        assert autotune.tune(child, home / "child") == second  # as kept
        autotune.tune(other, home / "other", widths=(4, 8))
    assert probed == [parent, other]


@pytest.mark.parametrize("at_fault", ["", "step", "layers"])
def test_an_adapter_takes_the_widths_of_its_base_where_the_check_of_its_own_layers_holds(
    at_fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "base", "llama")
    base, files = _decoder_of(folder), make_adapter(folder, tmp_path / "adapter", target_modules="all-linear")
    adapted = apply_adapter(weights.read_weights(folder, torch.float32), files, folder, torch.float32)
    child, probed, probe = _decoder.Decoder(adapted, torch.float32), list[_decoder.Decoder](), autotune.probe

    def counted(decoder: _decoder.Decoder, widths: tuple[int, ...], watch: object) -> autotune.Tuning:
        probed.append(decoder)
        # whichever widths agree on this processor
        return msgspec.structs.replace(probe(decoder, widths), widths=(4, 8), pass_widths=(96, 128))

    def step(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: Any = None) -> torch.Tensor:
        return torch.full((len(tokens), 8), float(at_fault == "step" and len(tokens) == 4))

    monkeypatch.setattr(autotune, "probe", counted)
    monkeypatch.setattr(autotune, "_keeping_text", lambda decoder, prefix, widths: list(widths))
    monkeypatch.setattr(autotune, "_keeps_layers", lambda decoder, width: at_fault != "layers")
    with torch.inference_mode():
        first = autotune.tune(base, tmp_path / "tuning" / "base", widths=(4, 8))
        shared = next((tmp_path / "tuning").glob("shape-*")).read_bytes()
        monkeypatch.setattr(child, "step", step)
        found = autotune.tune(child, tmp_path / "tuning" / "child", widths=(4, 8))
    assert probed == ([base, child] if at_fault else [base])
    assert found.widths == first.widths and found.fingerprint != first.fingerprint
    assert next((tmp_path / "tuning").glob("shape-*")).read_bytes() == shared


@pytest.mark.parametrize("at_fault", ["", "step", "prefill_packed"])
def test_the_tuning_of_a_shape_is_taken_only_where_the_check_holds(
    at_fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = _decoder_of(make_model(tmp_path / "child", "llama"))
    crooked = 4, autotune.PASS_WIDTHS[0]  # one of the widths of a step, one of a packed prefill

    def step(prefix: Any, slots: Any, tokens: Any, lengths: Any, n_slots: Any = None) -> torch.Tensor:
        return torch.full((len(tokens), 8), float(at_fault == "step" and len(tokens) in crooked))

    def prefill_packed(prefix: Any, slots: Any, segments: Any, width: int) -> None:
        slots.keys[0].fill_(float(at_fault == "prefill_packed" and width in crooked))

    with torch.inference_mode():
        autotune.tune(child, tmp_path / "other", widths=(8,))
    (shared,) = tmp_path.glob("shape-*")
    monkeypatch.setattr(child, "step", step)  # so that no width depends on this processor
    monkeypatch.setattr(child, "prefill_packed", prefill_packed)
    with torch.inference_mode():
        own = autotune.probe(child, (8,))
        autotune._keep(msgspec.structs.replace(own, widths=(4, 8), pass_widths=autotune.PASS_WIDTHS), shared)
        found = autotune.tune(child, tmp_path / "tuning", widths=(8,))
    assert found.widths == ((8,) if at_fault else (4, 8))


def test_an_engine_for_single_requests_measures_nothing_and_uses_what_was_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    model = store.pull(str(make_model(tmp_path / "tiny", "llama")))
    single = load_engine(model, store, is_batched=False)
    assert NOT_VERIFIED in single.name and not list((tmp_path / "store").glob("tuning/*"))
    tuned = load_engine(model, store)
    again = load_engine(model, store, is_batched=False)
    assert NOT_VERIFIED not in tuned.name and again.numerics == tuned.numerics
    request = Request(0, (Message("user", "seven wise owls"),), Decoding(8))
    assert len({next(iter(engine.reply([request]))).text for engine in (single, tuned, again)}) == 1
