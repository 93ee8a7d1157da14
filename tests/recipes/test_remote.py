"""A remote model is named in one line, recorded once, and holds no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from heredity.core.errors import UnknownName, UsageError
from heredity.lineage.store import Store
from heredity.recipes.targets.remote import Remote, parse
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
    grown = Store(tmp_path).get(ref)
    assert (grown.record.name, grown.record.format, grown.record.files) == (ref, "remote", ())
    assert Store(tmp_path).get(grown.record.id[:10]) == grown


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
    assert first == two.grow(Remote("openai", "gpt-4o-mini")).record.id
    assert one.get("remote:openai:m?a=1&b=2").record.id == two.get("remote:openai:m?b=2&a=1").record.id
    assert len({one.get(ref).record.id for ref in REFS} | {first}) == len(REFS)
    assert first == one.pull("remote:openai:gpt-4o-mini").record.id


@pytest.mark.parametrize(
    ("ref", "complaint"),
    [
        ("remote:openai", ("remote-malformed", [])),
        ("remote:openai:", ("remote-malformed", [])),
        ("remote:openai:m@ftp://host", ("remote-name", [])),
        ("remote:openai:m@http://host/v1#x", ("address-too-long", [])),
        ("remote:openai:m@http://", ("not-an-address", [])),
        ("remote:openai:m?omit=temperatur", ("unknown-name", ["temperature"])),
        ("remote:openai:m?prefill=trail", ("unknown-name", ["trailing"])),
        ("remote:anthropic:m?prefill=trailing", ("unknown-name", ["anthropic"])),
        ("remote:openai:m?temperature=1", ("option-of-the-application", [])),
        ("remote:openai:m?a=1&a=2", ("option-twice", [])),
        ("remote:openai:m?a", ("option-malformed", [])),
        ("remote:openai:m?think=-1", ("option-not-a-number", [])),
        ("remote:openai:m?anthropic_version=2023-06-01", ("option-of-another-api", [])),
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
