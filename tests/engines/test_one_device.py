"""The torch engine keeps everything on the device of its weights: run on an imitated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from heredity.core.records import Decoding
from heredity.engines.torch import refusal_direction
from heredity.engines.torch.decoder import BLOCK, CHUNK, Decoder, KvWrites, Segment
from heredity.engines.torch.engine import KvQuantizedDecoder
from heredity.engines.torch.sampling import Sampler
from heredity.engines.torch.session import BatchRow, ContinuousBatch
from heredity.formats import adapted
from tests.support.one_device import GPU, OneDevice, read_weights

PREFIX = tuple(range(3, 60))


@pytest.fixture(params=["float32", "bfloat16"])
def decoder(request: pytest.FixtureRequest, any_kind: Path, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    dtype = getattr(torch, request.param)
    with torch.inference_mode():
        return Decoder(read_weights(any_kind, dtype, monkeypatch), dtype)


@pytest.fixture(autouse=True)
def on_one_device() -> Iterator[None]:
    with torch.inference_mode(), OneDevice():
        yield


def test_the_guard_refuses_two_devices_and_a_hidden_wait() -> None:
    with pytest.raises(AssertionError, match="cpu"):
        torch.ones(3, device=GPU) + torch.ones(3)
    with pytest.raises(RuntimeError):
        torch.ones(3, device=GPU).tolist()


def test_a_prefill_with_and_without_a_prefix(decoder: Decoder) -> None:
    for shared in ((), PREFIX):
        prefix = decoder.prefix(shared)
        slots = decoder.slots(2, 2 * CHUNK)
        hidden = decoder.prefill(prefix, slots, 1, tuple(range(3, 300)))
        assert hidden.device == GPU and decoder.logits(hidden[:2]).device == GPU


def test_packed_prefills_and_steps_of_every_form(decoder: Decoder) -> None:
    prefix, slots = decoder.prefix(PREFIX), decoder.slots(4, BLOCK)
    segments = [Segment(0, 0, tuple(range(16))), Segment(2, 16, tuple(range(32)))]
    decoder.prefill_packed(prefix, slots, segments, 64)
    tokens, lengths = torch.zeros(4, dtype=torch.long), torch.tensor([5, 0, 7, 1])
    assert decoder.step(prefix, slots, tokens, lengths).device == GPU
    writes = KvWrites(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([5, 7]))
    assert decoder.step(prefix, slots, tokens, lengths, 3, writes).device == GPU
    slots.resize(8, 2 * BLOCK, 3)
    slots.move(0, 5, 4)
    assert {cache.device for cache in (*slots.keys, *slots.values)} == {GPU}


def test_a_rounded_cache(any_kind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = KvQuantizedDecoder(read_weights(any_kind, torch.bfloat16, monkeypatch), torch.bfloat16, 4)
    prefix, slots = decoder.prefix(PREFIX), decoder.slots(2, 2 * BLOCK)
    assert decoder.prefill(prefix, slots, 0, tuple(range(3, 90))).device == GPU
    lengths = torch.tensor([BLOCK - 1, 3])  # one row fills its block
    assert decoder.step(prefix, slots, torch.zeros(2, dtype=torch.long), lengths).device == GPU


def test_a_hook_on_the_residual_stream(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(read_weights(tiny_llama, torch.float32, monkeypatch), torch.float32)
    direction = refusal_direction._projected_from(torch.ones(64, device=GPU))
    hooked = decoder.hooked(direction)
    assert hooked.prefill(hooked.prefix(()), hooked.slots(1, BLOCK), 0, (3, 4, 5)).device == GPU
    assert refusal_direction._means(decoder, [(3, 4, 5)]).device == GPU


class Unread(ContinuousBatch):
    """A batch that draws the same token everywhere, as no number can be read from an imitated GPU."""

    def _draw(
        self, rows: list[BatchRow], logits: torch.Tensor, drafts: list[list[int]], places: list[list[int]]
    ) -> None:
        assert logits.device == GPU
        for row in rows:
            row.output.append(7)
            row.stop = "length" if len(row.output) == row.max_tokens else ""


def test_a_batch_with_drafts_and_packed_prompts(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(read_weights(tiny_llama, torch.float32, monkeypatch), torch.float32)
    batch = Unread(
        decoder, decoder.prefix(PREFIX), (4, 8), lambda row: False, 1 << 30, None, (2,), 7, (64, 128)
    )
    for key in range(3):
        prompt = tuple(range(3, 40 + 9 * key))
        batch.admit(BatchRow(key, prompt, 5 + 3 * key, Sampler(Decoding(), 0)))
    finished = []
    while batch.rows:
        finished += batch.step()
    assert sorted(row.key for row in finished) == [0, 1, 2]


def test_an_adapter_goes_to_the_device_of_its_base(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heredity.train.models import causal_lm
    from heredity.train.models.causal_lm import LowRankAdapters

    with torch.inference_mode(False):
        network, adapters = causal_lm.load(tiny_llama, "float32"), LowRankAdapters(rank=4)
        adapters.open(network, 0)
        adapters.save(network, tmp_path)
    base = read_weights(tiny_llama, torch.float32, monkeypatch)
    decoder = Decoder(adapted.apply_adapter(base, tmp_path, tiny_llama, torch.float32), torch.float32)
    assert decoder.prefill(decoder.prefix(()), decoder.slots(1, BLOCK), 0, (3, 4, 5)).device == GPU
