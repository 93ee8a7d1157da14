"""Several adapters over one base: mixed answers have the bits of answers alone, each row its own adapter."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import Damaged, Unavailable
from heredity.core.records import Decoding, Message, Reply, Request
from heredity.engines import AddressedRequest
from heredity.engines.torch import autotune
from heredity.engines.torch.adapters import AdapterEngine, SharedBase
from heredity.engines.torch.decoder import continued, marked, number_of, plain
from heredity.engines.torch.engine import TorchEngine, open_folder
from heredity.engines.torch.sampling import Sampler
from heredity.engines.torch.session import BatchRow, ContinuousBatch
from tests.support.errors import raises
from tests.support.random_adapters import random_adapter
from tests.support.tiny_models import WORDS, make_model

SYSTEM = Message("system", "the quick brown fox jumps over a lazy dog " * 3)
SETTINGS: list[dict[str, Any]] = [
    {"rank": 4, "targets": ["q_proj", "v_proj"]},
    {"rank": 8, "use_rslora": True},
    {"rank": 3, "targets": ["o_proj", "gate_proj", "down_proj"]},
    {"rank": 4, "alora_invocation_tokens": []},  # of the assistant's turn
    {"rank": 8},  # of the shape of the second: the two share a product
]
N = len(SETTINGS) + 1  # models


class Hub:
    """A base with five adapters, the fourth of them activated, and each adapter in an engine of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.base = make_model(folder / "base", name, max_position_embeddings=1024)
        self.tuning = folder / "tuning"
        engine = self.open()
        invocation = [*engine.codec.continuation("<|im_start|>assistant\n")]
        self.folders = []
        for i, settings in enumerate(SETTINGS):
            given = {key: value or invocation for key, value in settings.items()}
            self.folders.append(random_adapter(self.base, folder / f"a{i}", i, **given))
        self.own = [
            open_folder(self.base, dtype="float32", adapter=each, is_probed=False) for each in self.folders
        ]

    def open(self) -> TorchEngine:
        """The base by itself; it is probed once."""
        return open_folder(self.base, self.tuning, "float32")

    def fresh(self) -> tuple[SharedBase, list[AdapterEngine]]:
        """The same with empty caches."""
        shared = SharedBase(self.open())
        return shared, [shared.add(each, shared.read(each)) for each in self.folders]


@pytest.fixture(scope="module", autouse=True)
def few_widths() -> Iterator[None]:
    """A quick probe: widths that only real models need are not tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "WIDTHS", (4, 8, 16))
        patch.setattr(autotune.probe, "__defaults__", ((4, 8, 16), time.perf_counter, None))
        patch.setattr(autotune.tune, "__defaults__", ((4, 8, 16), None))
        yield


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Hub]:
    """A hub by its architecture, made once."""
    return cache(lambda name: Hub(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=["llama", pytest.param("qwen2", marks=pytest.mark.proof)])
def hub(request: pytest.FixtureRequest, hubs: Callable[[str], Hub]) -> Hub:
    return hubs(str(request.param))


@pytest.fixture
def one_hub(hubs: Callable[[str], Hub]) -> Hub:
    """For what does not depend on the architecture."""
    return hubs("llama")


def questions(n: int, temperature: float = 0.0, n_shared: int = 1) -> list[AddressedRequest]:
    """Requests of all models in turn, of many lengths; every third is a second turn."""
    stream = random.Random(3)

    def text() -> str:
        return " ".join(stream.choices(WORDS, k=stream.randint(1, 40)))

    found = []
    for key in range(n):
        turns = [Message("user", text())]
        if key % 3 == 0:
            turns += [Message("assistant", text()), Message("user", text())]
        decoding = Decoding(stream.randint(1, 24), temperature)
        found.append(
            AddressedRequest(key, (SYSTEM, *turns), decoding, key, n_shared=n_shared, adapter=key % N)
        )
    return found


def answers(shared: SharedBase, requests: Sequence[Request]) -> dict[int, Reply]:
    return {reply.key: reply for reply in shared.reply(requests)}


def caches(shared: SharedBase, requests: Sequence[AddressedRequest]) -> dict[int, torch.Tensor]:
    """By key, the last layer's own keys and values of prompt and two tokens, all rows in one batch."""
    pool, batch = shared.base.pool, None
    with torch.inference_mode():
        for request in requests:
            member = shared._members[request.adapter]
            tokens = member.codec.encode(member.codec.render(request))
            prefix, own = member.pool.split(member.codec.shared(request), tokens)
            batch = batch or ContinuousBatch(pool.decoder, prefix, pool.widths, lambda _: False, 1 << 32)
            batch.admit(BatchRow(request.key, own, 3, Sampler(request.decoding, request.seed), prefix))
        assert batch is not None
        batch.step(), batch.step()
    slots = batch._slots
    assert slots is not None
    return {
        row.key: torch.stack([side[-1][at, :, : len(row.prompt) + 1] for side in (slots.keys, slots.values)])
        for at, row in enumerate(batch.rows)
    }


@pytest.mark.parametrize("n_shared", [0, 1])
def test_mixed_answers_are_those_of_each_model_alone(hub: Hub, n_shared: int) -> None:
    """Greedy and sampled ones of every model in one batch."""
    shared, _ = hub.fresh()
    assert not shared.base.capabilities.provenance.is_batch_unverified
    greedy, sampled = questions(24, 0.0, n_shared), questions(24, 0.9, n_shared)
    requests = [(sampled if key // N % 2 else greedy)[key] for key in range(24)]
    together, backwards = answers(shared, requests), answers(shared, requests[::-1])
    assert together == backwards and len({reply.text for reply in together.values()}) > 16
    again, engines = hub.fresh()
    for request in requests[:12]:
        engine = [again.base, *engines][request.adapter]
        assert list(engine.reply([request])) == [together[request.key]]


@pytest.mark.parametrize("n_shared", [0, 1])
def test_a_row_among_rows_of_other_adapters_keeps_every_bit(hub: Hub, n_shared: int) -> None:
    shared, _ = hub.fresh()
    requests = questions(shared.width if shared.width < 16 else 16, n_shared=n_shared)
    joint = caches(shared, requests)
    for request in requests[:N]:
        assert torch.equal(caches(shared, [request])[request.key], joint[request.key])
        n = len(requests)
        turned = [requests[(i + request.key) % n] for i in range(n)]
        assert torch.equal(caches(shared, turned)[request.key], joint[request.key])


def test_each_row_has_its_own_adapter(hub: Hub) -> None:
    """Each model's scores are those of its own engine, and far from those of all others."""
    shared, members = hub.fresh()
    request, output = questions(2)[1], (9, 33, 71)
    own = [hub.open(), *hub.own]
    alone = [engine.log_probabilities(request, output) for engine in own]
    for number, engine in enumerate((shared.base, *members)):
        found = engine.log_probabilities(request, output)
        away = [float((found - other).abs().max()) for other in alone]
        assert away[number] < 1e-3 and min(away[:number] + away[number + 1 :]) > 0.05
    one = [msgspec.structs.replace(request, key=i, adapter=i, decoding=Decoding(24)) for i in range(N)]
    mixed = answers(shared, one)
    for engine, asked in zip(own, one, strict=True):
        assert [reply.tokens for reply in engine.reply([asked])] == [mixed[asked.key].tokens]


def test_equal_numerics_mean_equal_answers_of_an_adapter_s_own_engine(hub: Hub) -> None:
    _, members = hub.fresh()
    asked = questions(20, 0.9)
    assert len({each.numerics for each in members}) == len(members)
    for number in (1, 3):
        own = open_folder(hub.base, dtype="float32", adapter=hub.folders[number])
        if members[number].numerics == own.numerics:  # so it is where all widths keep the bits
            replies = {reply.key: reply for reply in own.reply(asked)}
            assert {reply.key: reply for reply in members[number].reply(asked)} == replies


def test_rows_of_all_adapters_share_steps_over_one_application(
    one_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, _ = one_hub.fresh()
    decoder, mixed = shared.base.decoder, []
    step = decoder.step

    def watched(prefix: Any, slots: Any, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        mixed.append({number_of(token) for token in tokens.tolist()} - {0})
        return step(prefix, slots, tokens, *rest)

    monkeypatch.setattr(decoder, "step", watched)
    answers(shared, questions(20))
    assert max(map(len, mixed)) == N - 1 and sum(len(each) > 1 for each in mixed) > len(mixed) // 2


def test_the_base_multiplies_nothing_of_its_adapters(one_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, _ = one_hub.fresh()
    plain_engine = one_hub.open()
    asked = [msgspec.structs.replace(each, adapter=0) for each in questions(8)]
    monkeypatch.setattr(torch.Tensor, "index_add_", None)
    assert answers(shared, asked) == {reply.key: reply for reply in plain_engine.reply(asked)}
    assert shared.numerics == plain_engine.numerics


def test_a_conversation_changes_its_adapter_and_no_cached_beginning_is_taken_over(one_hub: Hub) -> None:
    shared, _ = one_hub.fresh()
    turns: list[Message] = []
    for number in range(N + 1):
        turns.append(Message("user", f"the quick brown fox {number} " * 8))
        asked = AddressedRequest(number, (SYSTEM, *turns), Decoding(9), adapter=number % N, n_shared=1)
        (reply,) = shared.reply([asked])
        again, _ = one_hub.fresh()
        assert list(again.reply([asked])) == [reply]
        turns.append(Message("assistant", reply.text))


def test_an_activated_adapter_shares_the_prefix_of_its_base(one_hub: Hub) -> None:
    shared, members = one_hub.fresh()
    (request,) = questions(1)
    with torch.inference_mode():
        prefixes = [
            one.member.pool.split(one.codec.shared(request), one.prompt_tokens(request))[0]
            for one in (shared.base, *members)
        ]
    assert prefixes[4] is prefixes[0] and len({id(each) for each in prefixes}) == N - 1
    assert {each.text for each in prefixes} == {prefixes[0].text} and prefixes[0].length > 32


def test_a_removed_adapter_leaves_no_cache_and_its_successor_answers_by_itself(one_hub: Hub) -> None:
    shared, members = one_hub.fresh()
    first = [msgspec.structs.replace(each, adapter=2) for each in questions(6)]
    before, pool = answers(shared, first), shared.base.pool
    kept = [key for key in pool._cache._kept if number_of(key[1][-1]) == 2]
    assert bool(kept) == bool(pool.pass_widths) and any(
        key and number_of(key[-1]) == 2 for key in pool._prefixes
    )
    shared.remove(members[1])
    assert not [key for key in pool._cache._kept if number_of(key[1][-1]) == 2]
    assert not [key for key in pool._prefixes if key and number_of(key[-1]) == 2]
    assert 2 not in shared._adapters and len(shared._adapters) == N - 2
    (gone,) = shared.reply(first[:1])
    assert (gone.stop, gone.error_code) == ("error", "engine-failure")
    other = shared.add(one_hub.folders[2], shared.read(one_hub.folders[2]))
    assert other.number == N
    after = {reply.key: reply for reply in other.reply(first)}
    assert all(after[key].tokens != before[key].tokens for key in before if len(before[key].tokens) > 3)
    back = shared.add(one_hub.folders[1], shared.read(one_hub.folders[1]))
    assert {reply.key: reply for reply in back.reply(first)} == before


def test_an_adapter_that_is_added_later_changes_no_answer(one_hub: Hub) -> None:
    shared = SharedBase(one_hub.open())
    first = shared.add(one_hub.folders[0], shared.read(one_hub.folders[0]))
    asked = [each for each in questions(15) if each.adapter in (0, 1)]
    before = answers(shared, asked)
    shared.add(one_hub.folders[1], shared.read(one_hub.folders[1]))
    assert answers(shared, asked) == before and first.n_bytes > 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True, "more": ["lora_magnitude_vector"]}, "DoRA"),
        ({"lora_bias": True, "more": ["lora_B.bias"]}, "bias"),
        ({"targets": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ],
)
def test_an_adapter_of_another_form_keeps_its_own_engine(
    one_hub: Hub, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    adapter = random_adapter(one_hub.base, tmp_path / "a", 1, **{"targets": ["q_proj"], **settings})
    with raises(Unavailable, "adapter-not-shared", mentions=[named]):
        SharedBase(one_hub.open()).read(adapter)


def test_an_adapter_with_more_tokens_than_its_base_keeps_its_own_engine(one_hub: Hub, tmp_path: Path) -> None:
    adapter = random_adapter(one_hub.base, tmp_path / "a", 1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(one_hub.base / name, adapter / name)
    words = json.loads((adapter / "tokenizer.json").read_text())
    first = words["added_tokens"][0]
    words["added_tokens"] += [{**first, "id": 320 + i, "content": f"<|more{i}|>"} for i in range(9)]
    (adapter / "tokenizer.json").write_text(json.dumps(words))
    shared = SharedBase(one_hub.open())
    with raises(Unavailable, "adapter-not-shared", mentions=["tokenizer"]):
        shared.add(adapter, shared.read(adapter))
    assert not len(shared._adapters)


def test_an_adapter_of_another_base_is_refused(one_hub: Hub, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "llama", hidden_size=32)
    adapter = random_adapter(other, tmp_path / "a", 1, targets=["q_proj"])
    with raises(Damaged, "adapter-misfit", mentions=["32"]):
        SharedBase(one_hub.open()).read(adapter)


def test_a_base_that_rounds_its_cache_is_not_shared(one_hub: Hub) -> None:
    engine: TorchEngine = open_folder(one_hub.base, dtype="float32", is_probed=False, kv_bits=8)
    with raises(Unavailable, "adapter-not-shared"):
        SharedBase(engine)


def test_marks_are_told_apart_and_come_off() -> None:
    tokens = (5, 0, 319)
    for number in (1, 2, 70_000):
        own = marked(tokens, number)
        assert plain(own) == tokens and {number_of(token) for token in own} == {number}
        assert continued(own, [7]) == marked([7], number)
    assert marked(tokens, 0) == tokens and marked(tokens, 1) != marked(tokens, 2)
    assert continued(tokens, [7]) == (7,)
