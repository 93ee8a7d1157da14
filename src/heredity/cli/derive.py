"""Children of models: derived, pretrained, or adopted from other tools."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

import click

from heredity.cli import Lister, Name, PathArgument, Verb, device_option, open_store, shown_work
from heredity.core import registry
from heredity.core.errors import Unavailable, UnknownName, UsageError
from heredity.core.records import Model, Relation
from heredity.core.sanitize import label
from heredity.lineage.store import TARGETS, Store
from heredity.lineage.types import Grown, Recipe
from heredity.train.data.chat import Data

if TYPE_CHECKING:
    from heredity.recipes import DerivableRecipe
    from heredity.recipes.pretrain.recipe import Pretrain

R = TypeVar("R", bound="DerivableRecipe | Pretrain")
_NOTHING = "nothing"  # of a flag that may be repeated: none of its words
_LONGEST_NAME = 120  # characters of a name: a table of models has room for no more


class _Kinds(Lister):
    """One subcommand per recipe; its flags are the recipe's settings."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        from heredity.recipes import derivable

        return derivable()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from heredity.recipes import ComputingRecipe, derivable_class

        recipe_class = derivable_class(cmd_name)
        settings = recipe_options(recipe_class)
        if recipe_class.LEARNS_ANSWERS:
            data = next(option for option in settings if option.name == "data")
            data.required = False
            data.help = f"{data.help} Or give --answers."
            answers = click.Option(
                ["--answers"],
                type=Name(),
                metavar="MODEL",
                help="Learn the answers that this model keeps: those of the teacher of an `instruct` child.",
            )
            at = settings.index(data) + 1
            settings = [*settings[:at], answers, *settings[at:]]
        verb = Verb(
            cmd_name,
            help=(registry.load("recipes", cmd_name).__doc__ or "").strip(),
            callback=lambda **given: _derive(cmd_name, **given),
            params=[
                click.Argument(
                    ["parents"], type=Name(), nargs=-1, required=True, metavar=recipe_class.PARENTS
                ),
                *settings,
                click.Option(["--name"], type=Name(), help="Name of the child."),
            ],
            example=recipe_class.EXAMPLE or f"heredity derive {cmd_name} smollm2-135m-instruct",
        )
        return device_option(verb) if issubclass(recipe_class, ComputingRecipe) else verb


@click.command(
    "derive", cls=_Kinds, example="heredity derive lora smollm2-135m-instruct --data tickets.jsonl"
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Derive a child from one or more models.

    The store records its lineage. To resume training that was stopped, run the same command again.
    """
    if ctx.invoked_subcommand is None:
        from heredity.core.terminal import cell, out, table

        grid = table("recipe", "what it does", whole=["recipe"])
        for name in ctx.command.list_commands(ctx):  # type: ignore[attr-defined]
            purpose = (registry.load("recipes", name).__doc__ or "").strip().partition("\n")[0]
            package = f" ({there})" if (there := registry.outside("recipes", name)) else ""
            grid.add_row(cell(name, "bold"), cell(purpose + package))
        out().print(grid)


def _answers_of(store: Store, name: str) -> Path:
    """The file in which a model keeps its teacher's answers. Raises UsageError if it keeps none."""
    from heredity.train.data.chat import ANSWERS

    path = store.get(name).folder / ANSWERS
    if not path.is_file():
        raise UsageError(
            f"'{name}' keeps no answers of a teacher. The children of `heredity derive instruct` do; "
            "heredity models lists them."
        )
    return path


def _derive(kind: str, parents: tuple[str, ...], name: str | None, **given: Any) -> None:
    from heredity.core import terminal
    from heredity.core.sanitize import plain
    from heredity.recipes import DerivableRecipe, derivable_class

    store, recipe_class = open_store(), derivable_class(kind)
    if "answers" in given:
        answers = given.pop("answers")
        if (answers is None) == (given["data"] is None):
            raise click.UsageError("Give either '--data' or '--answers'.")
        given["data"] = given["data"] or _answers_of(store, answers)
    if recipe_class.PARENTS == DerivableRecipe.PARENTS and len(parents) != 1:
        raise UsageError(f"'{kind}' takes one parent, not {len(parents)}.")
    with shown_work(store, f"deriving {kind}") as display:
        watch = display.training(f"{kind} of {parents[0]}")
        recipe = build_recipe(recipe_class, given, name=name or "", watch=watch, warn=terminal.warn)
        grown = [store.get(parent) for parent in parents]
        if name:
            _refuse_taken(store, name, _made_alike(store, recipe, grown))
        child = store.grow_once(recipe, grown)
    record = child.record
    for key, value in record.notes.items():
        terminal.note(plain(f"{key}: {value}"))
    if message := _not_given(name, record):
        terminal.note(plain(message))
    terminal.out().print(terminal.cell(f"{record.name}  {record.id}"), soft_wrap=True)


class _Pretrain(Verb):
    """A verb whose flags are the recipe's settings, loaded when they are needed."""

    _has_settings = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._has_settings:
            from heredity.recipes.pretrain.recipe import Pretrain

            # None keeps the file's value, or the recipe's default if the file has none.
            options = [each for each in recipe_options(Pretrain) if each.name != "corpus"]
            for option in options:
                option.default = None
            self.params[3:3] = options
            self._has_settings = True
        return super().get_params(ctx)


@click.command("pretrain", cls=_Pretrain, example="heredity pretrain base.toml --size 10M --tokens 10000000")
@click.argument("recipe", metavar="RECIPE.toml", type=PathArgument())
@click.option(
    "--corpus", type=PathArgument(), metavar="DIR", help="Folder of the corpus; RECIPE.toml may name it."
)
@click.option(
    "--from", "base", type=Name(), metavar="BASE",
    help="Continue from this model, which becomes the parent. It sets size, shape and architecture.",
)  # fmt: skip
@click.option("--name", type=Name(), help="Name of the model.")
@device_option
def pretrain_command(
    recipe: Path, corpus: Path | None, base: str | None, name: str | None, **given: Any
) -> None:
    """Train a model on a corpus, from random weights or a base.

    RECIPE.toml may set every flag under the same name; flags override it. After a stop, even by kill -9, the
    same command resumes to the same bits. For many GPUs or machines: torchrun ... -m heredity pretrain
    RECIPE.toml; see docs/how-to/children.md.
    """
    from heredity.core import terminal
    from heredity.core.sanitize import plain
    from heredity.recipes.pretrain import recipe as pretrain

    settings = {key: value for key, value in given.items() if value is not None}
    beside: dict[str, object] = {
        key: value for key, value in (("corpus", corpus), ("name", name)) if value is not None
    }
    store = open_store()
    with shown_work(store, "preparing the training") as display:
        if base is not None:
            beside["base"] = store.whole(store.get(base))
        made = pretrain.read(recipe, settings | beside, display.training(f"pretrain {recipe.stem}"))
        if made.name:
            _refuse_taken(store, made.name, _made_alike(store, made, made.parents))
        grown = made.grow(store)
    if grown is None:  # of several processes, only the first reports
        return
    record = grown.record
    for key, value in record.notes.items():
        terminal.note(plain(f"{key}: {value}"))
    if unnamed := _not_given(made.name, record):
        terminal.note(plain(unnamed))
    rows = (grown.folder / "training.jsonl").read_bytes().splitlines()
    losses = [float(json.loads(row)["loss"]) for row in rows]
    terminal.note(f"loss, {losses[0]:.3g} to {losses[-1]:.3g}: {terminal.sparkline(losses)}")
    terminal.out().print(terminal.cell(f"{record.name}  {record.id}"), soft_wrap=True)


@click.command("adopt", cls=Verb, example="heredity adopt out/my-adapter --parent hf:org/base")
@click.argument("ref", metavar="PATH|hf:ORG/REPO|NAME", type=Name())
@click.option(
    "--parent", "parents", type=Name(), multiple=True, required=True, metavar="MODEL",
    help="The model that it was made from. Repeatable for a merge, and for a student's start and teacher.",
)  # fmt: skip
@click.option(
    "--kind", "made", type=click.Choice(get_args(Relation)),
    help="How it was made.  [default: decided by its files]",
)  # fmt: skip
@click.option("--name", type=Name(), help="Name of the child.  [default: that of the folder or repository]")
@click.option(
    "--declared", is_flag=True, help="Record the descent although the model's own files name another parent."
)
def adopt_command(
    ref: str, parents: tuple[str, ...], made: Relation | None, name: str | None, declared: bool
) -> None:
    """Record a model that another tool made as the child of its parent.

    PATH is a folder with a PEFT adapter or with whole weights, as PEFT, TRL, unsloth and transformers write
    it, or a .gguf file. Leftovers of the training are left out. heredity compares the files with the parent
    and records the evidence: claimed, consistent or shown. It refuses a model that contradicts its parent.
    """
    from heredity.cli import pull
    from heredity.core import terminal
    from heredity.core.sanitize import plain
    from heredity.lineage.catalog import facts
    from heredity.recipes.adopt import adopt

    store = open_store()
    given = [_parent(store, parent) for parent in parents]
    if name:
        _refuse_taken(store, name, lambda held: held.recipe.kind == "adopt")  # it may be this one
    elif default := _default_name(ref):
        _refuse_folder_name(store, default)
    pull.show_before_adoption(store, ref, given[0])
    with shown_work(store, "checking the parent") as display:
        record = adopt(ref, given, store, made, name or "", declared, display).record
    for key, value in (*record.notes.items(), *facts(record)):
        terminal.note(plain(f"{key}: {value}"))
    if message := _not_given(name, record):
        terminal.note(plain(message))
    if any(each.name == record.name and each.id != record.id for each in store.models()):
        terminal.note(plain(f"Another model is named '{record.name}', too: use the id {record.id[:12]}."))
    terminal.out().print(terminal.cell(f"{record.name}  {record.id}"), soft_wrap=True)


def _parent(store: Store, ref: str) -> Grown:
    """A parent of the store. Raises Unavailable for one that must be pulled first, with the command."""

    from heredity.lineage.references import is_elsewhere

    try:
        return store.get(ref)
    except UnknownName:
        if not is_elsewhere(ref, store):
            raise
    name = Path(ref.partition(":")[2].partition("@")[0] if ref.startswith("hf:") else ref).name
    raise Unavailable(
        f"The parent {ref} is not in this store yet. Get it with heredity pull {ref}, and give its name:"
        f" --parent {name.removesuffix('.gguf')}",
        code="model-not-pulled",
    )


def _default_name(ref: str) -> str:
    """The name of a child that is given as a folder or a .gguf file; "" for the hub and for stored models."""

    from heredity.lineage.references import is_there

    path = Path(ref)
    if ref.startswith("hf:") or not is_there(path):
        return ""
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def _refuse_folder_name(store: Store, name: str) -> None:
    """Raise UsageError if the name of the folder is that of a model that was not adopted."""

    for held in store.models():
        if held.name == name and held.recipe.kind != "adopt":
            raise UsageError(
                f"'{name}' already names another model ({held.id[:12]}, {held.recipe.kind}). Give the child"
                " another name with --name."
            )


# --- flags and settings ---


class _Setting(NamedTuple):
    name: str
    kind: Any
    default: Any
    help: str
    folder: str  # of the plug-ins of which it names one; "" for none


def recipe_options(recipe: type[R]) -> list[click.Option]:
    """One flag a setting, in the order of the fields."""
    by_name: dict[str, click.Option] = {}
    for setting in _walk(recipe):
        for option in _options_of(setting):
            by_name.setdefault(option.opts[0], option)  # two files share one --columns
    return list(by_name.values())


def build_recipe(recipe: type[R], given: Mapping[str, Any], **others: Any) -> R:
    """Build the recipe from click's values; `others` are fields without a flag, used if it has them."""
    names = {each.name for each in dataclasses.fields(recipe)}
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(recipe)
    for each in dataclasses.fields(recipe):
        if not each.compare:
            continue
        value = given[_key(each.name)]
        if value is None and hints[each.name] is str:
            value = ""  # a flag that was left out; given, it must not be empty
        if _is_data(hints[each.name]):
            has_answers = each.metadata.get("has_answers", True)
            other_data = [
                f.name for f in dataclasses.fields(recipe) if _is_data(hints[f.name]) and f is not each
            ]
            value = _read(value, given, has_answers, each.name, other_data) if value is not None else None
        values[each.name] = value
    return recipe(**values, **{key: value for key, value in others.items() if key in names})


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


def _refuse_taken(store: Store, name: str, is_same: Callable[[Model], bool]) -> None:
    """Raise UsageError for text that is not a name, or that means another model or a target."""
    if label(name, _LONGEST_NAME) != name:
        rule = f"A name has at most {_LONGEST_NAME} visible characters, without spaces around it"
        raise UsageError(f"{rule}: {name[:60]!r}.")
    if (prefix := name.partition(":")[0]) in {*TARGETS, "scripted", "hf"} and prefix != name:
        raise UsageError(
            f"'{name}' names a target of the kind '{prefix}:'. Choose a name without the prefix."
        )
    try:
        held = store.get(name).record
    except Unavailable:
        raise UsageError(f"'{name}' is a model of the catalogue. Choose another name.") from None
    except UnknownName:
        return
    if not is_same(held):
        raise UsageError(f"'{name}' already names another model ({held.id[:12]}). Choose another name.")


def _made_alike(store: Store, recipe: Recipe, parents: Sequence[Grown]) -> Callable[[Model], bool]:
    """Whether a model is the one that this recipe made from these parents."""

    def is_same(held: Model) -> bool:
        known = store.made_by(recipe, [store.whole(parent) for parent in parents])
        return known is not None and known.record.id == held.id

    return is_same


def _not_given(name: str | None, record: Model) -> str:
    """A message for a name that is not used, because the model exists under another one; else ""."""
    if not name or name == record.name:
        return ""
    return (
        f"This model already exists as '{record.name}', and a model has one name: '{name}' is not used. "
        f"Use {record.name}, or its id {record.id[:12]}."
    )
