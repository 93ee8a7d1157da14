"""A recipe on the command line: its flags, the recipe from their values, and the name of the new model.

Promises: each setting has one flag; its help and default are the recipe's. The name that a user gives must
find the new model and no other; it is checked before anything is made.
Leaves to others: checking the values (the recipe does), and names that recipes choose. Models may share
those; Store.get then asks for an id.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import click

from heredity.cli import Name, PathArgument
from heredity.core import registry
from heredity.core.errors import Unavailable, UnknownName, UsageError
from heredity.core.records import Model
from heredity.core.sanitize import label
from heredity.lineage.store import Store, target_prefixes
from heredity.lineage.types import Grown, Recipe
from heredity.train.data.chat import Data

if TYPE_CHECKING:
    from heredity.recipes import DerivableRecipe
    from heredity.recipes.pretrain.recipe import Pretrain

R = TypeVar("R", bound="DerivableRecipe | Pretrain")
_NOTHING = "nothing"  # of a flag that may be repeated: none of its words
LONGEST = 120  # characters of a name: a table of models has room for no more

# --- flags and settings ---


class _Setting(NamedTuple):
    name: str
    kind: Any
    default: Any
    help: str
    folder: str  # of the plug-ins of which it names one; "" for none


def options(recipe: type[R]) -> list[click.Option]:
    """One flag a setting, in the order of the fields."""
    by_name: dict[str, click.Option] = {}
    for setting in _walk(recipe):
        for option in _options_of(setting):
            by_name.setdefault(option.opts[0], option)  # two files share one --columns
    return list(by_name.values())


def build(recipe: type[R], given: Mapping[str, Any], **others: Any) -> R:
    """Build the recipe from click's values; `others` are fields without a flag, used if it has them."""
    names = {each.name for each in dataclasses.fields(recipe)}
    values = _values(recipe, given)
    return recipe(**values, **{key: value for key, value in others.items() if key in names})


def _values(kind: type[R], given: Mapping[str, Any]) -> dict[str, Any]:
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
            other_data = [
                f.name for f in dataclasses.fields(kind) if _is_data(hints[f.name]) and f is not each
            ]
            value = _read(value, given, has_answers, each.name, other_data) if value is not None else None
        values[each.name] = value
    return values


def _read(
    path: Path, given: Mapping[str, Any], has_answers: bool, name: str, other_data: Sequence[str]
) -> Data:
    """Read the data of one flag. With two files, --columns may give each its own: `harmful=COLUMN`."""
    from heredity.train.data import chat

    pairs = [pair.partition("=") for pair in (given["columns"] or "").split(",") if pair]
    if wrong := next((name for name, sign, value in pairs if not sign or not value), None):
        raise UsageError(f"--columns takes NAME=COLUMN, separated by commas; '{wrong}' is something else.")
    columns = {key.strip(): column.strip() for key, _, column in pairs if key.strip() not in other_data}
    if other_data and name in columns:
        columns["prompt"] = columns.pop(name)
    return chat.read_data(path, columns, has_answers)


def _walk(kind: type[R]) -> Iterator[_Setting]:
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if each.compare:
            help_text = each.metadata.get("help", "")
            folder = each.metadata.get("folder", "")
            yield _Setting(each.name, hints[each.name], _default(each), help_text, folder)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _options_of(setting: _Setting) -> list[click.Option]:
    key, flag = _key(setting.name), "--" + _key(setting.name).replace("_", "-")
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
        return [click.Option([f"{flag}/--no-{flag[2:]}", key], **common)]
    if setting.folder:
        kinds = click.Choice(registry.names(setting.folder))
        return [click.Option([flag, key], type=kinds, **common)]
    if typing.get_origin(kind) is Literal:
        return [click.Option([flag, key], type=click.Choice(typing.get_args(kind)), **common)]
    if typing.get_origin(kind) is tuple and typing.get_origin(typing.get_args(kind)[0]) is Literal:
        words = click.Choice([*typing.get_args(typing.get_args(kind)[0]), _NOTHING])
        return [click.Option([flag, key], type=words, multiple=True, callback=_chosen, **common)]
    if typing.get_origin(kind) is tuple:
        shown = ",".join(setting.default) if setting.default else None
        common |= {
            "default": shown,
            "callback": lambda _c, _p, value: tuple(filter(None, (value or "").split(","))),
        }
        return [click.Option([flag, key], type=Name(), metavar="NAME,...", **common)]
    if kind is str and setting.default == "":
        common |= {"default": None, "show_default": False}
    return [click.Option([flag, key], type=_plain(kind), **common)]


def _chosen(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a flag that may be repeated; `nothing` is the empty choice."""
    if _NOTHING in value and len(value) > 1:
        raise click.BadParameter(f"'{_NOTHING}' stands alone.", ctx, param)
    return tuple(each for each in value if each != _NOTHING)


def _plain(kind: Any) -> Any:
    """int, float or str, also of `int | None`."""
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return {int: int, float: float}.get(kind, Name())


def _key(name: str) -> str:
    return name.removeprefix("is_")


def _is_data(kind: object) -> bool:
    return kind is Data or Data in typing.get_args(kind)


# --- the name of the new model ---


def refuse_taken(store: Store, name: str, recipe: Recipe, parents: Sequence[Grown]) -> None:
    """Raise UsageError for a name with invisible characters, or one that names another model or a target."""
    refuse_bad_name(name)
    try:
        held = store.get(name).record
    except Unavailable:
        raise UsageError(f"'{name}' is a model of the catalogue. Choose another name.") from None
    except UnknownName:
        return
    known = store.made_by(recipe, [store.whole(parent) for parent in parents])
    if known is None or known.record.id != held.id:
        raise UsageError(f"'{name}' already names another model ({held.id[:12]}). Choose another name.")


def refuse_bad_name(name: str) -> None:
    """Raise UsageError for a name with invisible characters, or with the prefix of a target."""
    if label(name, LONGEST) != name:
        rule = f"A name has at most {LONGEST} visible characters, without spaces around it"
        raise UsageError(f"{rule}: {name[:60]!r}.")
    if (prefix := name.partition(":")[0]) in {*target_prefixes(), "scripted", "hf"} and prefix != name:
        raise UsageError(
            f"'{name}' names a target of the kind '{prefix}:'. Choose a name without the prefix."
        )


def not_given(name: str | None, record: Model) -> str:
    """A message for a name that is not used, because the model exists under another one; else ""."""
    if not name or name == record.name:
        return ""
    return (
        f"This model already exists as '{record.name}', and a model has one name: '{name}' is not used. "
        f"Use {record.name}, or its id {record.id[:12]}."
    )
