"""Flags from a recipe's fields, and the recipe from what was given.

Promises: a flag is there for every setting and for nothing else; its help and default are the recipe's.
Leaves to others: whether a value makes sense (the recipe says so when it is made).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import click

from heredity.cli import Name, PathArgument
from heredity.train.data.chat import Data


class _Setting(NamedTuple):
    path: tuple[str, ...]  # of the fields that lead to it
    kind: Any
    default: Any
    help: str


def options(recipe: type) -> list[click.Option]:
    """One flag a setting, in the order of the fields."""
    found: dict[str, click.Option] = {}
    for setting in _walk(recipe, ()):
        for option in _options_of(setting):
            found.setdefault(option.opts[0], option)  # two files share one --columns
    return list(found.values())


def made(recipe: type, given: Mapping[str, Any], **beside: Any) -> Any:
    """The recipe, of the flags as click gives them; `beside` are fields without a flag, where it has them."""
    names = {each.name for each in dataclasses.fields(recipe)}
    return (
        _build(recipe, given, ())
        if not beside
        else dataclasses.replace(
            _build(recipe, given, ()), **{key: value for key, value in beside.items() if key in names}
        )
    )


def _build(kind: type, given: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if not each.compare:
            continue
        if dataclasses.is_dataclass(hints[each.name]) and not _is_data(hints[each.name]):
            values[each.name] = _build(hints[each.name], given, (*path, each.name))
            continue
        value = given[_key(each.name)]
        if value is None and hints[each.name] is str:
            value = ""  # a flag that was left out; given, it must not be empty
        if _is_data(hints[each.name]):
            has_answers = each.metadata.get("has_answers", True)
            beside = [f.name for f in dataclasses.fields(kind) if _is_data(hints[f.name]) and f is not each]
            value = _read(value, given, has_answers, each.name, beside) if value is not None else None
        values[each.name] = value
    return kind(**values)


def _read(path: Any, given: Mapping[str, Any], has_answers: bool, name: str, beside: Sequence[str]) -> Data:
    """The data of one flag. Of two files --columns may say `harmful=COLUMN`, which is of one alone."""
    from heredity.core.errors import UsageError
    from heredity.train.data import chat

    pairs = [pair.partition("=") for pair in (given["columns"] or "").split(",") if pair]
    if wrong := next((name for name, sign, value in pairs if not sign or not value), None):
        raise UsageError(f"--columns are NAME=COLUMN, separated by commas; '{wrong}' is not.")
    columns = {key.strip(): column.strip() for key, _, column in pairs if key.strip() not in beside}
    if beside and name in columns:
        columns["prompt"] = columns.pop(name)
    return chat.read(path, columns, has_answers)


def _walk(kind: type, path: tuple[str, ...], defaults: Any = None) -> Iterator[_Setting]:
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if not each.compare:
            continue
        default = _default(each) if defaults is None else getattr(defaults, each.name)
        if dataclasses.is_dataclass(hints[each.name]) and not _is_data(hints[each.name]):
            yield from _walk(hints[each.name], (*path, each.name), default)
        else:
            help_text = each.metadata.get("help", "")
            yield _Setting((*path, each.name), hints[each.name], default, help_text)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _options_of(setting: _Setting) -> list[click.Option]:
    name = setting.path[-1]
    key, flag = _key(name), "--" + _key(name).replace("_", "-")
    is_needed = setting.default is dataclasses.MISSING
    common: dict[str, Any] = {"help": setting.help, "required": is_needed}
    if not is_needed:
        common |= {"default": setting.default, "show_default": True}
    kind = setting.kind
    if _is_data(kind):
        columns = "What the data calls them: prompt=COLUMN,completion=COLUMN[,rejected=COLUMN]; of two files"
        columns += " each by its flag: harmful=COLUMN,harmless=COLUMN."
        help_text = setting.help or "Conversations: JSON lines, CSV, Parquet, or a saved data set."
        common |= {"help": help_text, "required": is_needed, "metavar": "FILE"}
        if not is_needed:
            common["show_default"] = False
        return [
            click.Option([flag, key], type=PathArgument(), **common),
            click.Option(["--columns"], type=Name(), help=columns),
        ]
    if kind is bool:
        return [click.Option([f"{flag}/--no-{flag[2:]}", key], **common)]
    if typing.get_origin(kind) is Literal:
        return [click.Option([flag, key], type=click.Choice(typing.get_args(kind)), **common)]
    if typing.get_origin(kind) is tuple:
        shown = ",".join(setting.default) if setting.default else None
        common |= {"default": shown, "callback": lambda _c, _p, value: _names(value)}
        return [click.Option([flag, key], type=Name(), metavar="NAME,...", **common)]
    if kind is str and setting.default == "":
        common |= {"default": None, "show_default": False}
    return [click.Option([flag, key], type=_plain(kind), **common)]


def _plain(kind: Any) -> Any:
    """int, float or str, also of `int | None`."""
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return {int: int, float: float}.get(kind, Name())


def _names(value: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (value or "").split(",")))


def _key(name: str) -> str:
    return name.removeprefix("is_")


def _is_data(kind: Any) -> bool:
    return kind is Data or Data in typing.get_args(kind)
