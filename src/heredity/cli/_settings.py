"""Derive command-line flags from a recipe's fields, and build the recipe from their values.

Promises: each setting has one flag; its help and default are the recipe's.
Leaves to others: checking the values (the recipe does when it is built).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import click

from heredity.cli import Name, Option, PathArgument
from heredity.core import registry
from heredity.lineage.setting_names import first_name
from heredity.train.data.chat import Data


class _Setting(NamedTuple):
    name: str
    first_name: str  # by which flags and ids knew it first
    kind: Any
    default: Any
    help: str
    folder: str  # of the plug-ins of which it names one; "" for none


def options(recipe: type) -> list[click.Option]:
    """One flag a setting, in the order of the fields."""
    found: dict[str, click.Option] = {}
    for setting in _walk(recipe):
        for option in _options_of(setting):
            found.setdefault(option.opts[0], option)  # two files share one --columns
    return list(found.values())


def made(recipe: type, given: Mapping[str, Any], **beside: Any) -> Any:
    """Build the recipe from click's values; `beside` are fields without a flag, used if it has them."""
    names = {each.name for each in dataclasses.fields(recipe)}
    values = _values(recipe, given)
    return recipe(**values, **{key: value for key, value in beside.items() if key in names})


def _values(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if not each.compare:
            continue
        value = given[_key(each.name)]
        if value is None and hints[each.name] is str:
            value = ""  # a flag that was left out; given, it must not be empty
        if _is_data(hints[each.name]):
            has_answers = each.metadata.get("has_answers", True)
            beside = [f.name for f in dataclasses.fields(kind) if _is_data(hints[f.name]) and f is not each]
            value = _read(value, given, has_answers, each.name, beside) if value is not None else None
        values[each.name] = value
    return values


def _read(path: Any, given: Mapping[str, Any], has_answers: bool, name: str, beside: Sequence[str]) -> Data:
    """Read the data of one flag. With two files, --columns may give each its own: `harmful=COLUMN`."""
    from heredity.core.errors import UsageError
    from heredity.train.data import chat

    pairs = [pair.partition("=") for pair in (given["columns"] or "").split(",") if pair]
    if wrong := next((name for name, sign, value in pairs if not sign or not value), None):
        raise UsageError(f"--columns takes NAME=COLUMN, separated by commas; '{wrong}' is something else.")
    columns = {key.strip(): column.strip() for key, _, column in pairs if key.strip() not in beside}
    if beside and name in columns:
        columns["prompt"] = columns.pop(name)
    return chat.read_data(path, columns, has_answers)


def _walk(kind: Any) -> Iterator[_Setting]:
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if each.compare:
            first = first_name(kind.kind, each.name)
            help_text = each.metadata.get("help", "")
            folder = each.metadata.get("folder", "")
            yield _Setting(each.name, first, hints[each.name], _default(each), help_text, folder)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _options_of(setting: _Setting) -> list[click.Option]:
    key, flag = _key(setting.name), _flag(setting.name)
    old = [] if setting.first_name == setting.name else [_flag(setting.first_name)]
    is_needed = setting.default is dataclasses.MISSING
    common: dict[str, Any] = {"help": setting.help, "required": is_needed}
    if not is_needed:
        common |= {"default": setting.default, "show_default": True}
    kind = setting.kind
    if _is_data(kind):
        columns = "Column names in the data: prompt=P,completion=C[,rejected=R]."
        columns += " With two files: harmful=H,harmless=L."
        help_text = setting.help or "Conversations in JSON lines, CSV, Parquet, or a saved dataset."
        common |= {"help": help_text, "required": is_needed, "metavar": "FILE"}
        if not is_needed:
            common["show_default"] = False
        return [
            click.Option([flag, key], type=PathArgument(), **common),
            click.Option(["--columns"], type=Name(), help=columns),
        ]
    if kind is bool:
        off = [f"--no-{each[2:]}" for each in old]
        return [Option([f"{flag}/--no-{flag[2:]}", key], former=old, former_off=off, **common)]
    if setting.folder:
        kinds = click.Choice(registry.names(setting.folder))
        return [Option([flag, key], former=old, type=kinds, **common)]
    if typing.get_origin(kind) is Literal:
        return [Option([flag, key], former=old, type=click.Choice(typing.get_args(kind)), **common)]
    if typing.get_origin(kind) is tuple:
        shown = ",".join(setting.default) if setting.default else None
        common |= {"default": shown, "callback": lambda _c, _p, value: _names(value)}
        return [Option([flag, key], former=old, type=Name(), metavar="NAME,...", **common)]
    if kind is str and setting.default == "":
        common |= {"default": None, "show_default": False}
    return [Option([flag, key], former=old, type=_plain(kind), **common)]


def _plain(kind: Any) -> Any:
    """int, float or str, also of `int | None`."""
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return {int: int, float: float}.get(kind, Name())


def _names(value: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (value or "").split(",")))


def _key(name: str) -> str:
    return name.removeprefix("is_")


def _flag(name: str) -> str:
    return "--" + _key(name).replace("_", "-")


def _is_data(kind: Any) -> bool:
    return kind is Data or Data in typing.get_args(kind)
