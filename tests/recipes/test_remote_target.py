"""A remote model is named in one line, recorded once, and holds no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core.errors import UnknownName, UsageError
from heredity.lineage.store import Store
from heredity.recipes.targets.remote import RemoteTarget, looks_like_key, parse
from tests.support.clock import computing_within
from tests.support.errors import raises

REFS = [
    "remote:openai:gpt-4o-mini",
    "remote:openai:qwen@http://127.0.0.1:8000/v1",
    "remote:openai:org/model:free@https://models.example/api/v1",
    "remote:openai:name@2024-08@http://127.0.0.1:8000/v1",
    "remote:anthropic:claude-sonnet-4-5?anthropic_version=2023-06-01",
    "remote:gemini:gemini-2.5-flash?prefill=trailing&think=512",
    "remote:openai:o4-mini?omit=seed,temperature&reasoning_effort=low",
    "remote:openai:m?x=%7B%22a%22:%5B1,2%5D%7D",
]


@pytest.mark.parametrize("ref", REFS)
def test_a_reference_is_read_and_spelt_back(ref: str, tmp_path: Path) -> None:
    recipe = parse(ref)
    assert parse(recipe.name) == recipe and recipe.name == ref
    grown = Store(tmp_path).pull(ref)
    assert (grown.record.name, grown.record.format, grown.record.files) == (ref, "remote", ())
    assert Store(tmp_path).get(grown.record.id[:10]) == grown == Store(tmp_path).get(ref)


def test_the_parts_of_a_reference(tmp_path: Path) -> None:
    recipe = parse('remote:openai:name@v2@http://127.0.0.1:8000/v1/?omit=temperature&think=9&a=low&b={"c":1}')
    assert (recipe.api, recipe.model, recipe.base_url) == ("openai", "name@v2", "http://127.0.0.1:8000/v1/")
    assert recipe.settings() == {
        "engine": "remote",
        "api": "openai",
        "base_url": "http://127.0.0.1:8000/v1",
        "model": "name@v2",
        "options": {"a": "low", "b": {"c": 1}, "omit": ["temperature"], "think": 9},
    }


def test_ids_are_the_same_for_the_same_model_however_it_is_spelt(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    first = one.get("remote:openai:gpt-4o-mini").record.id
    assert first == two.get("remote:openai:gpt-4o-mini@https://api.openai.com/v1/").record.id
    assert first == two.grow(RemoteTarget("openai", "gpt-4o-mini")).record.id
    assert one.get("remote:openai:m?a=1&b=2").record.id == two.get("remote:openai:m?b=2&a=1").record.id
    assert len({one.get(ref).record.id for ref in REFS} | {first}) == len(REFS)
    assert first == one.pull("remote:openai:gpt-4o-mini").record.id


@pytest.mark.parametrize(
    ("ref", "complaint"),
    [
        ("remote:openai", ("bad-usage", [])),
        ("remote:openai:", ("bad-usage", [])),
        ("remote:openai:m@ftp://host", ("bad-usage", [])),
        ("remote:openai:m@http://host/v1#x", ("bad-usage", [])),
        ("remote:openai:m@http://", ("bad-usage", [])),
        ("remote:openai:m?omit=temperatur", ("unknown-name", ["temperature"])),
        ("remote:openai:m?prefill=trail", ("unknown-name", ["trailing"])),
        ("remote:anthropic:m?prefill=trailing", ("unknown-name", ["anthropic"])),
        ("remote:openai:m?temperature=1", ("bad-usage", [])),
        ("remote:openai:m?a=1&a=2", ("name-twice", [])),
        ("remote:openai:m?a", ("bad-usage", [])),
        ("remote:openai:m?think=-1", ("bad-usage", [])),
        ("remote:openai:m?anthropic_version=2023-06-01", ("bad-usage", [])),
    ],
)
def test_a_mistake_is_said_in_a_line(ref: str, complaint: tuple[str, list[str]]) -> None:
    with raises(UsageError, *complaint):
        parse(ref)


def test_another_api_names_the_nearest(tmp_path: Path) -> None:
    with raises(UnknownName, "unknown-name", mentions=["openai"]):
        parse("remote:opnai:gpt-4o")


@pytest.mark.parametrize(
    "ref",
    [
        "remote:openai:m@http://user:sk-abc123@host/v1",
        "remote:openai:m?api_key=sk-abc123",
        "remote:openai:m?Authorization=sk-abc123",
        "remote:openai:m?token=sk-abc123",
    ],
)
def test_a_key_in_a_reference_is_refused_and_not_repeated(ref: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        Store(tmp_path).get(ref)
    assert "sk-abc123" not in str(refusal.value) and "--key-env" in str(refusal.value)
    assert Store(tmp_path).models() == []


HEX = "0123456789abcdef0fedcba987654321"
KEYS = [
    "sk-proj-Ab3dEfGh1jKlMn0pQrStUvWx",
    "sk-0123456789abcdef0123456789abcdef",
    "sk-ant-api03-Ab3dEfGh1jKlMn0pQrSt-UvWxYz_0123",
    "sk-or-v1-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "gsk_Ab3dEfGh1jKlMn0pQrStUvWxYz0123456789",
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "xai-Ab3dEfGh1jKlMn0pQrStUvWxYz0123456789",
    "ghp_Ab3dEfGh1jKlMn0pQrStUvWxYz0123456789",
    "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuv",
    "AKIAIOSFODNN7EXAMPLE",
    "ya29.a0AfB_byC1d2E3f4G5h6I7j8",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    HEX,
    "a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6e7f8a9b0",
    "k9Xw2Qv8Lm4Zt7Rb1Nc6Yp3H",
    "p4q8z1m7x3c9v2b6n5k0j4h8g2f7d1s3",
]
NAMES = [
    "gpt-4o-mini-2024-07-18", "o4-mini", "gpt-4.1-nano-2025-04-14", "claude-sonnet-4-5-20250929",
    "claude-3-5-sonnet-20241022", "gemini-2.5-flash-preview-09-2025", "text-embedding-3-large",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8", "Llama4Maverick17B128EInstructFP8",
    "ft:gpt-4o-mini-2024-07-18:acme:support-desk:9Ab3dEfG", "qwen2.5-coder-0.5b-instruct-q4_k_m",
    "accounts/fireworks/models/llama-v3p1-405b-instruct", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
    "us.anthropic.claude-3-5-sonnet-20241022-v2:0", "mistralsmall24binstruct2501", "sk-model",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
    "nvidia/llama-3.1-nemotron-70b-instruct:free", "openai/gpt-oss-120b", "grok-4-fast-non-reasoning",
    "123e4567-e89b-12d3-a456-426614174000", "ministral-8b-latest", "skt/A.X-4.0-Light", "pplx-70b-online",
    "tickets-lora-restored-0.3-merged", "microsoft/Phi-3.5-mini-instruct", "HuggingFaceTB/SmolLM2-135M",
    "ibm-granite/granite-3.3-8b-instruct", "command-a-03-2025", "internlm2_5-7b-chat",
    "01-ai/Yi-1.5-34B-Chat", "zai-org/GLM-4.5-Air", "moonshotai/Kimi-K2-Instruct-0905",
]  # fmt: skip
PLACES = [
    "remote:openai:{}",
    "remote:openai:{}@http://127.0.0.1:8000/v1?think=5",
    "remote:openai:vendor/{}",
    "remote:openai:gpt-4o:{}",
    "remote:gemini:models/{}",
    "remote:openai:gpt-4o@{}",
    "remote:{}",
    "remote:{}:gpt-4o",
    "remote:openai: {}",
    "remote:openai:{} ",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("place", PLACES)
def test_a_key_in_the_place_of_a_name_is_refused_and_not_repeated(
    key: str, place: str, tmp_path: Path
) -> None:
    if key == HEX and "127.0.0.1" in place:
        pytest.skip("such a name is an id of heredity's own there")
    with raises(UsageError, "bad-usage", ["--key-env"]) as caught:
        Store(tmp_path).get(place.format(key))
    assert key[4:] not in str(caught.value) and caught.value.__cause__ is None
    assert not list(tmp_path.rglob("*"))  # nothing is recorded


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith(("sk-", "AIza", "gsk_", "hf_"))])
def test_a_key_in_an_option_or_an_address_is_refused(key: str) -> None:
    for ref in (
        f"remote:openai:m?user={key}",
        f'remote:openai:m?x={{"deep":["{key}"]}}',
        f"remote:openai:m@http://host/{key}/v1",
    ):
        with raises(UsageError, "bad-usage") as caught:
            parse(ref)
        assert key not in str(caught.value)


@pytest.mark.parametrize("key", KEYS[:4])
def test_a_recipe_refuses_a_key_by_itself(key: str) -> None:
    with raises(UsageError, "bad-usage"):
        RemoteTarget("openai", key)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_models_are_no_keys(name: str) -> None:
    assert parse(f"remote:openai:{name}").model == name


def test_an_id_names_a_model_of_a_server_on_this_machine() -> None:
    assert parse(f"remote:openai:{HEX}@http://127.0.0.1:8000/v1").model == HEX
    for elsewhere in ("", "@https://127.0.0.1.example/v1", "@http://10.0.0.1/v1"):
        with raises(UsageError, "bad-usage"):
            parse(f"remote:openai:{HEX}{elsewhere}")


def test_a_long_name_is_looked_at_in_time_by_its_length() -> None:
    with computing_within(5):
        for name in ("a1" * 500_000, "sk-" * 300_000, "eyJ" * 300_000, "a." * 500_000, "-" * 1_000_000):
            looks_like_key(name)
