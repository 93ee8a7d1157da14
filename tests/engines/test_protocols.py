"""An engine declares its capabilities once; one that only answers declares none."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

from heredity.core import registry
from heredity.core.errors import EngineFailure, Unavailable
from heredity.core.records import Message, Reply, Request
from heredity.engines import Capabilities, EngineModule, RequestStream, altered, base_numerics, capabilities
from heredity.lineage.store import engine_loader, scripted
from tests.support.errors import raises


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names("engines"))
def test_every_file_of_engines_is_an_engine_module(name: str) -> None:
    try:
        assert isinstance(registry.load("engines", name), EngineModule)
    except ImportError as error:
        pytest.skip(f"an optional package is not installed: {error.name}")


@pytest.mark.parametrize("name", registry.names("engines"))
def test_a_missing_package_names_an_extra_that_the_project_has(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("No module named 'x'")

    record = scripted("scripted:leaky").record
    recipe = msgspec.structs.replace(record.recipe, settings={**record.recipe.settings, "engine": name})
    monkeypatch.setattr(registry, "load_as", missing)
    with raises(Unavailable, "package-missing") as caught:
        engine_loader(msgspec.structs.replace(record, recipe=recipe))
    extra = re.search(r"pip install -e '\.\[(\w+)\]'", str(caught.value))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert extra is not None
    if name not in ("scripted", "call", "url"):  # these import nothing that could be missing
        assert extra[1] in project["optional-dependencies"]


def test_the_protocols_are_not_an_engine() -> None:
    assert "protocols" not in registry.names("engines")


class Silent:
    """An engine from outside, which declares nothing."""

    name, numerics = "silent", "silent 1"

    def render(self, request: Request) -> str:
        return request.prefill

    def reply(self, requests: Iterable[Request | None]) -> Iterator[Reply]:
        yield from (Reply(each.key, "", "yes") for each in requests if each is not None)

    def close(self) -> None: ...


def test_an_engine_that_declares_nothing_only_answers() -> None:
    engine = Silent()
    assert capabilities(engine) == Capabilities()
    assert base_numerics(engine) == engine.numerics and capabilities(engine).provenance.account() == {}


def test_there_are_at_most_eight_capabilities() -> None:
    assert len(fields(Capabilities)) <= 8


def test_an_altered_engine_has_another_name() -> None:
    assert altered("torch float32", "first 3 layers") not in ("torch float32", altered("torch float32", "x"))


def test_a_stream_gives_its_requests_and_says_when_it_has_ended() -> None:
    one = Request(1, (Message("user", "Hi"),))
    stream = RequestStream([None, one])
    assert stream.next() is None and stream.is_open
    assert stream.next() is one and stream.is_open
    assert stream.next() is None and not stream.is_open
    stream.refuse_idle()  # it has ended: nothing is missing


def test_an_open_stream_without_requests_in_flight_is_a_failure() -> None:
    with raises(EngineFailure, "engine-failure"):
        RequestStream([None]).refuse_idle()
