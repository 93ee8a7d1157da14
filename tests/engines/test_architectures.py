"""Every architecture of the torch engine, in its variants, against transformers in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from heredity.core.errors import Damaged
from heredity.engines.torch import decoder as _decoder
from heredity.engines.torch import engine
from heredity.engines.torch.decoder import Decoder, Segment
from heredity.engines.torch.engine import KvBits, KvQuantizedDecoder
from heredity.formats import adapted, peft, weights
from heredity.formats.architectures import ARCHITECTURES
from tests.support.errors import raises
from tests.support.tiny_models import NEWER, make_model

N = 150  # tokens of the text: several chunks, and more than a window
NEAR = 2e-4  # of the largest logit
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3, a quarter of each head not rotated": (
        "phi3",
        {"head_dim": 16, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}},
    ),
    "phi3, LongRoPE": (
        "phi3",
        {
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 256,
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [2.0, 4.0, 8.0, 16.0],
            },
        },
    ),
    "olmo3, with windows and YaRN in layers without one": (
        "olmo3",
        {
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "attention_factor": 1.2,
                    "original_max_position_embeddings": 128,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "qwen3_moe, weights that do not sum to 1": ("qwen3_moe", {"norm_topk_prob": False}),
    "llama4, two experts a token, no norm, no temperature": (
        "llama4_text",
        {
            "num_experts_per_tok": 2,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "smollm3, with windows where it does not rotate": (
        "smollm3",
        {"sliding_window": 24, "use_sliding_window": True},
    ),
}
ALL = {name: (name, {}) for name in NEWER} | VARIANTS
TEXT = tuple(torch.randint(3, 300, (N,), generator=torch.Generator().manual_seed(1)).tolist())


@pytest.fixture(scope="module", params=sorted(ALL))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, settings = ALL[request.param]
    return make_model(tmp_path_factory.mktemp("model"), architecture, **settings)


def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def read(folder: Path) -> weights.Weights:
    return weights.read_weights(folder, torch.float32)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max()) < NEAR * float(expected.abs().max())


def assert_logits(decoder: Decoder, expected: torch.Tensor) -> None:
    """Prefill in chunks, and decode a token at a time from the middle, over prefixes of several lengths."""
    for n_prefix in (0, 1, 33, 100):
        prefix, own = decoder.prefix(TEXT[:n_prefix]), TEXT[n_prefix:]
        slots = decoder.slots(4, 192)
        hidden = decoder.prefill(prefix, slots, 2, own)[: len(own)]
        assert_near(decoder.logits(hidden), expected[n_prefix:])
        slots, middle = decoder.slots(4, 192), len(own) - 20
        decoder.prefill(prefix, slots, 1, own[:middle])
        for at in range(middle, len(own)):
            lengths = torch.tensor([0, at, 3, 0])
            logits = decoder.step(prefix, slots, torch.tensor([5, own[at], 7, 8]), lengths)
            assert_near(logits[1], expected[n_prefix + at])


def test_logits_are_those_of_transformers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_decoder, "CHUNK", 64)
    with torch.inference_mode():
        expected = reference(model)(torch.tensor([TEXT])).logits[0]
        assert_logits(Decoder(read(model), torch.float32), expected)


def test_packed_segments_have_the_keys_of_a_prefill(model: Path) -> None:
    decoder, n = Decoder(read(model), torch.float32), N // 16 * 16
    with torch.inference_mode():
        for n_prefix in (0, 33):
            prefix = decoder.prefix(TEXT[:n_prefix])
            slots, packed = decoder.slots(2, 192), decoder.slots(2, 192)
            decoder.prefill(prefix, slots, 1, TEXT[:n])
            for start, end in ((0, 16), (16, 48), (48, n)):
                segments = [Segment(0, 0, TEXT[:16]), Segment(1, start, TEXT[start:end])]
                decoder.prefill_packed(prefix, packed, segments, 128)
            for one, other in zip((*slots.keys, *slots.values), (*packed.keys, *packed.values), strict=True):
                assert_near(other[1, :, :n], one[1, :, :n])


def test_weights_read_a_layer_at_a_time_are_the_same(model: Path) -> None:
    with torch.inference_mode():
        one, other = (
            Decoder(read_some(model, torch.float32), torch.float32)
            for read_some in (weights.read_weights, engine.read_weights)
        )
        found = [d.prefill(d.prefix(()), d.slots(1, 192), 0, TEXT) for d in (one, other)]
        assert_near(one.logits(found[0]), other.logits(found[1]))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_rounded_cache_is_the_same_in_one_pass_and_token_by_token(model: Path, bits: KvBits) -> None:
    decoder = KvQuantizedDecoder(read(model), torch.float32, bits)
    with torch.inference_mode():
        prefix, own = decoder.prefix(TEXT[:33]), TEXT[33:]
        whole, steps = decoder.slots(2, 192), decoder.slots(2, 192)
        decoder.prefill(prefix, whole, 1, own)
        decoder.prefill(prefix, steps, 1, own[:70])
        for at in range(70, len(own)):
            decoder.step(prefix, steps, torch.tensor([5, own[at]]), torch.tensor([0, at]))
        for one, other in zip((*whole.keys, *whole.values), (*steps.keys, *steps.values), strict=True):
            apart = (one[1, :, : len(own)] - other[1, :, : len(own)]).abs()
            assert float(apart.mean()) < NEAR * float(one.abs().max())


def test_a_hook_is_called_at_each_addition(model: Path) -> None:
    seen: list[torch.Tensor] = []
    plain = Decoder(read(model), torch.float32)
    hooked = plain.hooked(lambda x: (seen.append(x), x)[1])
    with torch.inference_mode():
        one, other = (d.prefill(d.prefix(()), d.slots(1, 192), 0, TEXT) for d in (plain, hooked))
    assert torch.equal(one, other) and torch.equal(seen[-1], other)
    assert len(seen) == 1 + 2 * plain.shape.n_layers


def test_the_language_model_of_one_that_reads_images_is_found(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    plain = make_model(tmp_path / "plain", "gemma3_text")
    config = json.loads((plain / "config.json").read_text())
    expected = read(plain).blocks[1].norm_mlp
    for at, prefix in enumerate(("language_model.", "model.language_model.")):
        folder = tmp_path / str(at)
        folder.mkdir()
        tensors = load_file(plain / "model.safetensors")
        renamed = {prefix + name.removeprefix("model." if at else ""): each for name, each in tensors.items()}
        save_file(renamed | {"vision_tower.x": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
        assert torch.equal(read(folder).blocks[1].norm_mlp, expected)


def write_adapter(folder: Path, model: Any, targets: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Write an adapter of these projections; return what it adds to each matrix."""
    from safetensors.torch import save_file

    stream, tensors, added = torch.Generator().manual_seed(3), {}, {}
    for name, weight in model.named_parameters():
        if name.removesuffix(".weight").rpartition(".")[2] in targets:
            a, b = (
                torch.randn(2, weight.shape[1], generator=stream),
                torch.randn(len(weight), 2, generator=stream),
            )
            at = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": 0.02 * b}
            added[name] = 2.0 * (0.02 * b @ a)
    save_file(tensors, folder / peft.TENSORS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / peft.CONFIG).write_text(json.dumps(config))
    return added


def linear_names(folder: Path) -> tuple[str, ...]:
    of = ARCHITECTURES[weights.read_shape(folder)[0].model_type]
    return tuple(name.rpartition(".")[2] for name in (*of.qkv, *of.out, *of.gate_up, *of.down))


def test_an_adapter_of_every_matrix_gives_the_logits_of_the_sum(model: Path, tmp_path: Path) -> None:
    whole = reference(model)
    names = linear_names(model)
    if weights.read_shape(model)[0].routing is not None:  # experts have no adapters
        names = names[:4]
    with torch.inference_mode():
        for targets in (names, names[:1], names[-1:]):
            summed = reference(model)
            added = write_adapter(tmp_path, whole, targets)
            assert added
            for name, parameter in summed.named_parameters():
                parameter += added.get(name, 0)
            expected = summed(torch.tensor([TEXT])).logits[0]
            decoder = Decoder(
                adapted.apply_adapter(read(model), tmp_path, model, torch.float32), torch.float32
            )
            hidden = decoder.prefill(decoder.prefix(()), decoder.slots(1, 192), 0, TEXT)[:N]
            assert_near(decoder.logits(hidden), expected)


def test_an_adapter_of_a_matrix_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    one, other = make_model(tmp_path / "one", "phi3"), make_model(tmp_path / "other", "llama")
    write_adapter(tmp_path, reference(one), ("qkv_proj",))
    with raises(Damaged, code="adapter-misfit"):
        adapted.apply_adapter(read(other), tmp_path, other, torch.float32)


def test_longrope_ends_where_its_rotation_changes(tmp_path: Path) -> None:
    architecture, settings = VARIANTS["phi3, LongRoPE"]
    assert read(make_model(tmp_path, architecture, **settings)).shape.context_length == 256
