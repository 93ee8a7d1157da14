"""Help, version, engines and attacks, and the completion of words in a shell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from heredity.cli import SECTIONS, Name, Verb
from heredity.core import registry


@click.command("help", cls=Verb, example="heredity help derive lora")
@click.argument("verb", metavar="[VERB]...", type=Name(), nargs=-1)
@click.pass_context
def help_command(ctx: click.Context, verb: tuple[str, ...]) -> None:
    """Show the help of heredity or of a verb.

    The same text is printed by --help after a verb.
    """
    from heredity.core.errors import UnknownName, UsageError

    context = ctx.find_root()
    for name in verb:
        group = context.command
        if not isinstance(group, click.Group):
            raise UsageError(f"'{context.command_path}' has no subcommands.", code="unknown-name")
        command = group.get_command(context, name)
        if command is None:
            raise UnknownName("verb", name, group.list_commands(context), f"{context.command_path} --help")
        context = click.Context(command, parent=context, info_name=name)
    click.echo(context.get_help())


@click.command("version", cls=Verb, example="heredity version")
def version_command() -> None:
    """Show the version of heredity."""
    from heredity.core import __version__
    from heredity.core.errors import did_you_mean
    from heredity.core.sanitize import plain

    click.echo(f"heredity {__version__}")
    groups = {folder: group for group, folder in registry.GROUPS.items()}
    known = [f"heredity.{group}" for group in registry.GROUPS]
    for folder, by_name in registry.installed().items():
        for name, packages in by_name.items():
            why = ": not used, because both have this name" if len(packages) > 1 else ""
            if folder not in groups:
                why = f": not used, because there is no such group.{did_you_mean(folder, known)}"
            elif registry.is_ours(folder, name):
                why = ": not used, because heredity has this name"
            shown = " and ".join(map(str, packages))
            click.echo(plain(f"{groups.get(folder, folder)}: {name} ({shown}){why}"))


_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_HEREDITY_COMPLETE"  # by which the script asks; click reads it
_PLAN = "plan.json"
_WORD = re.compile(r"[\w.@+-]+")
_DEEPEST = 2  # folders between what is typed and a study
_MAX_FOLDERS = 200  # folders that are looked at
_MODELS = (
    "model", "models", "parents", "parent", "baseline", "candidate", "attacker", "head", "answers", "only",
    "lineage", "edge", "embed", "rerank", "ref", "refs", "what",
)  # fmt: skip
_PLUGINS = {("export", "form"): "deploy.export", ("report", "kind"): "study.report"}


@click.command("completion", cls=Verb, example="heredity completion bash")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(_SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes heredity in a shell.

    It completes verbs, options, models, techniques, attacks, judges and the folders of studies. For every new
    shell, write one line into its start file:

    \b
      ~/.bashrc                    eval "$(heredity completion bash)"
      ~/.zshrc                     eval "$(heredity completion zsh)"
      ~/.config/fish/config.fish   heredity completion fish | source
    """
    script = get_completion_class(shell)
    assert script is not None  # click has these three
    click.echo(script(ctx.find_root().command, {}, "heredity", _VARIABLE).source())


def complete_name(parameter: str, verb: str, begun: str, study: Path | None = None) -> list[CompletionItem]:
    """The names that a parameter of a verb may have and that start with what was typed.

    study: the folder of the verb's study, whose models are then offered in place of the store's.
    """
    own = _models_of(study) if study is not None and parameter in _MODELS else []
    names = [
        name for name in own or _known_names(parameter, verb) if name.startswith(begun) and ":" not in name
    ]
    items = [CompletionItem(name) for name in dict.fromkeys(names)]
    return [*items, *complete_study(begun)] if parameter == "what" else items  # a model or a study


def _known_names(parameter: str, verb: str) -> Sequence[str]:
    if parameter in _MODELS:
        return _catalogue() if verb == "pull" else _store_models(verb)
    if (folder := _PLUGINS.get((verb, parameter))) is not None:
        return registry.names(folder)
    find = _NAMES.get(parameter)
    return [] if find is None else find()


def complete_study(begun: str) -> list[CompletionItem]:
    """The folders of studies at or below the folder that was typed."""
    typed = Path(begun)
    base = typed if begun.endswith("/") or not begun else typed.parent
    with suppress(OSError):
        return [CompletionItem(str(each)) for each in _studies(base) if str(each).startswith(begun)]
    return []


def _studies(base: Path) -> Iterator[Path]:
    patterns = ["*/" * depth + _PLAN for depth in range(1, _DEEPEST + 1)]
    folders = (path.parent for pattern in patterns for path in sorted(base.glob(pattern)))
    for n, folder in enumerate(folders):
        if n == _MAX_FOLDERS:
            return
        yield folder


def _models_of(folder: Path) -> list[str]:
    """The models of a study, each without the kind before its last colon; [] if its plan cannot be read.

    A folder may come from anyone, so a name that a shell could read as more than a word is left out.
    """
    import json

    from heredity.core.errors import HeredityError
    from heredity.core.files import read_file

    try:
        names = [str(model["name"]) for model in json.loads(read_file(folder / _PLAN))["plan"]["models"]]
    except (HeredityError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    ends = [name.rpartition(":")[2] for name in names]
    return [end for end in ends if _WORD.fullmatch(end) and ends.count(end) == 1]


def _store_models(verb: str) -> list[str]:
    """The models of the store with their short names; those that a study would pull come last."""
    from heredity.lineage import catalog
    from heredity.lineage.store import Store

    held = {model.name for model in Store().models()}
    short = [alias for alias, name in catalog.aliases().items() if name in held]
    return [*sorted(held), *short, *(_catalogue() if verb in ("study", "inherit") else ())]


def _catalogue() -> list[str]:
    from heredity.lineage import catalog

    return catalog.names()


def _probes() -> list[str]:
    from heredity.redteam.probes import SUITES

    return [*SUITES, *_techniques()]


def _techniques() -> list[str]:
    return registry.names("redteam.probes", ".toml")


def _verbs() -> list[str]:
    return [verb for verbs in SECTIONS.values() for verb in verbs]


_NAMES: dict[str, Callable[[], list[str]]] = {
    "attack": lambda: ["direct", *registry.names("redteam.attacks")],
    "judge": lambda: registry.names("redteam.judges"),
    "probes": _probes,
    "names": _probes,
    "technique": _techniques,
    "tasks": lambda: registry.names("evals.tasks", ".toml"),
    "verb": _verbs,
}


@click.command("engines", cls=Verb, example="heredity engines --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def engines_command(as_json: bool) -> None:
    """List the engines that can load a model and answer."""
    from heredity.core import terminal

    terminal.show_plugins("engines", as_json)


@click.command("attacks", cls=Verb, example="heredity attacks --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def attacks_command(as_json: bool) -> None:
    """List the attacks that a study can apply to its probes.

    `heredity study --attack` takes NAME[:VARIANT][@TECHNIQUE,...]. Join several with "+": the attack that
    leads the conversation comes first, then those that transform its turns, as in crescendo+encoding:rot13.
    With "@", the attack is only for these techniques, as in crescendo@planted_secret,harmful_request.
    The first variant is the default.
    """
    from heredity.core import terminal
    from heredity.core.errors import Unavailable
    from heredity.redteam import attacks

    shown: dict[str, tuple[str, tuple[str, ...], str]] = {}
    for name, purpose in registry.purposes("redteam.attacks").items():
        try:
            part = attacks.load(name).parts[0]
            shown[name] = (purpose, part.variants, part.attack.cost)
        except Unavailable as error:
            shown[name] = (str(error), (), "")
    if as_json:
        keys = ("purpose", "variants", "queries")
        terminal.write_json({name: dict(zip(keys, row, strict=True)) for name, row in shown.items()})
        return
    grid = terminal.table("name", "what it is", "variants", "queries", whole=["name"])
    for name, (purpose, variants, cost) in shown.items():
        texts = (purpose, ", ".join(variants), cost)
        grid.add_row(terminal.cell(name, "bold"), *map(terminal.cell, texts))
    terminal.out().print(grid)
