"""The examples in docs/reference/formats.md can be read, and the records of files are on the page."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from heredity.application.spec import Application
from heredity.core.records import Model, Response, Verdict
from heredity.study.estimates import Estimates
from heredity.study.plan import PlanFile
from heredity.study.storage import RunRecord

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
EXAMPLES: list[str] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def held(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The record types in an annotation, and those that they hold."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for inner in typing.get_type_hints(kind).values():
            yield from held(inner)
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind):
        for inner in typing.get_args(kind):
            yield from held(inner)


@pytest.mark.parametrize("root", [Response, Verdict, RunRecord, PlanFile, Estimates, Model, Application])
def test_every_record_and_every_field_is_on_the_page(root: type[msgspec.Struct]) -> None:
    for kind in {*held(root)}:
        section = re.search(rf"^#+ {kind.__name__}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
        assert section, kind.__name__
        assert set(kind.__struct_fields__) <= set(re.findall(r"`(\w+)`", section[1])), kind.__name__


@pytest.mark.parametrize(("place", "kind"), [(0, Response), (1, Verdict)])
def test_the_examples_are_rows_that_heredity_reads(place: int, kind: type[msgspec.Struct]) -> None:
    assert len(EXAMPLES) == 2
    row = msgspec.json.decode(EXAMPLES[place], type=kind)
    always = {f.name for f in msgspec.structs.fields(kind) if f.default is not msgspec.UNSET}
    assert set(msgspec.json.decode(EXAMPLES[place])) == always
    newest = {f.name: f.default for f in msgspec.structs.fields(kind)}.get("schema")
    assert getattr(row, "schema", None) == newest
