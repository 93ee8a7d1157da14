"""The command line: a verb reads options, calls the library and prints.

Promises: a verb's module is imported only to run it or to show its help. A user's mistake is one line on
stderr and exit 2, never a traceback. For an unknown verb or option the message names the nearest one.
Leaves to others: everything that a verb does (the library works without the command line).

Exit codes (`gate` adds its own):

    0    done
    2    a mistake of the user, or something refused, damaged or missing
    70   a fault in heredity itself
    75   the run's budget of tokens or money is spent; answers are kept
    130  stopped by the user
    141  the reader of the output closed it
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from heredity.core import __version__, registry
from heredity.core.errors import BudgetSpent, HeredityError, UnknownName, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from heredity.core.terminal import Display
    from heredity.lineage.store import Store

# Kept here, not in the verbs' modules, so that `heredity --help` imports none; a test holds both equal.
SECTIONS: dict[str, dict[str, str]] = {
    "Start": {
        "demo": "Show a finished study with its lineage, from recorded answers.",
        "init": "Write an application, probes, a plan and CI jobs to start from.",
        "help": "Show the help of heredity or of a verb.",
        "version": "Show the version of heredity.",
        "completion": "Print the script that completes heredity in a shell.",
    },
    "Grow": {
        "pull": "Download a foundation model into the store.",
        "push": "Copy models to a bucket or a shared folder.",
        "adopt": "Record a model that another tool made as the child of its parent.",
        "corpus": "Build a pre-training corpus.",
        "derive": "Derive a child from one or more models.",
        "plan": "Estimate what a pre-training run costs, or fit a scaling law.",
        "pretrain": "Train a model on a corpus, from random weights or a base.",
        "export": "Export a model for other software, and check the files.",
        "models": "List the models in the store, or those that can be pulled.",
        "verify": "Check that a model's files are the recorded ones.",
        "rename": "Give a model another name.",
        "rm": "Remove models from the store.",
        "gc": "Delete the files of the store that nothing needs.",
    },
    "Measure": {
        "index": "Index a folder of documents for retrieval, or search an index.",
        "ask": "Ask a model one question.",
        "chat": "Talk with a model.",
        "eval": "Evaluate models on small tasks, without any tuning.",
        "study": "Ask the same probes of several models in one application.",
        "inherit": "Measure what children kept of a parent's safety.",
        "agentdojo": "Run AgentDojo's suites: agents with injections in their data.",
        "adapt": "Compare the ways to adapt a model to a task.",
        "import": "Judge and compare answers that were recorded elsewhere.",
        "label": "Label some of a study's answers, to correct its rates.",
        "exposure": "Measure whether a model memorized a planted canary.",
        "tamper": "Find the number of tuning steps that remove safety.",
        "repair": "Restore the safety that a child lost.",
        "reproduce": "Make and ask again what a folder holds, and compare.",
        "gate": "Pass or fail a study, for CI.",
        "power": "Plan how many trials a study needs.",
    },
    "Serve": {
        "serve": "Serve models behind an OpenAI-compatible API.",
    },
    "Read": {
        "studies": "List the studies of a folder, with state and verdict.",
        "report": "Write a study's report.",
        "view": "Open the studies of a folder as web pages.",
        "show": "Show a model, a study, or its trials and conversations.",
        "probes": "List the probes, show one, or import a public set.",
        "attacks": "List the attacks that a study can apply to its probes.",
        "judges": "List the judges and their accuracy; calibrate or train one.",
        "engines": "List the engines that can load a model and answer.",
    },
}
# The modules of verbs that share one; any other verb has a module of its own name.
_MODULES = {
    verb: module
    for module, verbs in {
        "ask": "chat",
        "derive": "adopt pretrain",
        "information": "attacks completion engines help version",
        "lab": "adapt agentdojo exposure inherit repair reproduce tamper",
        "models": "gc rename rm show verify",
        "pull": "push",
        "report": "studies",
        "start": "demo init",
    }.items()
    for verb in verbs.split()
}
FAULT, SPENT, STOPPED, CLOSED = 70, 75, 130, 141
_F = TypeVar("_F", bound=Callable[..., object])
_DEBUG = "--debug"
_DEVICE = "heredity.device"  # in click's context
COST_HELP = "Your cost of a breach, a refusal, a useless answer; attacks=0.01 is their share."


class Verb(click.Command):
    """A command with --debug, and with an example in its help."""

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:
        settings.setdefault("context_settings", {})["help_option_names"] = ["-h", "--help"]
        super().__init__(*args, **settings)
        self.example = example
        self.params.append(_debug_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The example, in lines that can be copied together."""
        if self.example:
            formatter.write(f"\nExample:\n  {_folded(self.example, formatter.width)}\n")


def _folded(example: str, width: int) -> str:
    """A command in lines of at most `width` columns, broken before options, with continuation marks."""
    first, *options = example.split(" --")
    lines = [first]
    for option in options:
        if len(lines[-1]) + len(option) + 7 <= width:  # with the indent, " --" and " \\"
            lines[-1] += f" --{option}"
        else:
            lines.append(f"    --{option}")
    return " \\\n  ".join(lines)


class Lister(click.Group):
    """A verb with subcommands. Without a subcommand it lists what it has."""

    def __init__(self, *args: Any, example: str = "", **settings: Any) -> None:
        settings.setdefault("context_settings", {})["help_option_names"] = ["-h", "--help"]
        settings["invoke_without_command"] = True
        super().__init__(*args, **settings)
        self.example = example
        self.params.append(_debug_option())

    format_epilog = Verb.format_epilog

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name is answered with the nearest."""
        if not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            kind = "verb" if ctx.parent is None else f"'{ctx.info_name}' verb"
            raise UnknownName(kind, args[0], self.list_commands(ctx), f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)


class _Verbs(Lister):
    """The root command: it knows each verb's name and purpose without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        commands = vars(registry.load("cli", _MODULES.get(cmd_name, cmd_name))).values()
        return next(each for each in commands if isinstance(each, click.Command) and each.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.list_commands(ctx)))
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{widest}}", what) for name, what in verbs.items()])


class Name(click.types.StringParamType):
    """A text in UTF-8 that must not be empty: an empty variable in a shell script names nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        converted = super().convert(_not_empty(self, value, param, ctx), param, ctx)
        is_text = not any("\ud800" <= each <= "\udfff" for each in converted)
        return converted if is_text else self.fail("is not UTF-8.", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that there are, by the name of the parameter."""
        complete = registry.load("cli", "information").complete_name
        completion_items: list[CompletionItem] = complete(
            param.name or "", ctx.info_name or "", incomplete, _study_of(ctx)
        )
        return completion_items


def _study_of(ctx: click.Context) -> Path | None:
    """The folder of a study that an unfinished command line names first; None for other verbs."""
    import pathlib

    arguments = [each.name for each in ctx.command.params if isinstance(each, click.Argument)]
    if arguments[:1] != ["folder"]:
        return None
    # Behind an option without its value click parses no argument, but keeps the words.
    words = [ctx.params.get("folder"), *ctx.args]
    return next((pathlib.Path(each) for each in words if each), None)


class PathArgument(click.Path):
    """The path of a file or folder; empty, it would quietly be the current folder."""

    def __init__(self) -> None:
        import pathlib

        super().__init__(path_type=pathlib.Path)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The folders of studies, then whatever files there are."""
        is_study = param.name in ("folder", "study", "plan")
        complete = registry.load("cli", "information").complete_study
        completion_items: list[CompletionItem] = complete(incomplete) if is_study else []
        return completion_items + super().shell_complete(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_not_empty(self, value, param, ctx), param, ctx)


def record_options(record: type) -> Callable[[_F], _F]:
    """Add one flag a setting of a frozen record, in the order of its fields; their metadata is its help."""
    import dataclasses

    from heredity.core.records import kinds

    made, by_name = [], kinds(record)
    for each in dataclasses.fields(record):
        if (kind := by_name.get(each.name)) is None:
            continue
        its, default = each.metadata, each.default
        key = its["flag"] or each.name
        how: dict[str, Any] = {"help": its["help"], "default": default or None if kind is str else default}
        if kind is bool:
            how["is_flag"] = True
        else:
            plain = click.IntRange(*bounds) if (bounds := its["bounds"]) else _NUMBERS.get(kind)
            how |= {
                "type": plain or (PathArgument() if its["is_path"] else Name()),
                "metavar": its["metavar"],
            }
        if kind is list:
            how |= {"multiple": True, "default": (default,) if isinstance(default, str) else default}
        how["show_default"] = kind is not bool and how["default"] not in (None, ())
        made.append(click.option(f"--{key.replace('_', '-')}", key, **how))

    def add(command: _F) -> _F:
        for option in reversed(made):
            command = option(command)
        return command

    return add


_NUMBERS = {int: click.INT, float: click.FLOAT}


class Amount(click.FloatRange):
    """A finite number above 0. NaN compares as false with every bound, so it is refused."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        import math

        converted = super().convert(value, param, ctx)
        return converted if math.isfinite(converted) else self.fail(f"{value} is not a number.", param, ctx)


def _not_empty(
    kind: click.ParamType[object], value: Any, param: click.Parameter | None, ctx: click.Context | None
) -> Any:
    return value if value != "" else kind.fail("must not be empty.", param, ctx)


def _keep_device(ctx: click.Context, param: click.Parameter, value: str | None) -> None:  # noqa: ARG001
    if value is not None:
        from heredity.core import host

        host.read_device(value)  # an error in it is reported before anything is read
        ctx.find_root().meta[_DEVICE] = value


device_option = click.option(
    "--device", type=Name(), metavar="DEVICE", expose_value=False, callback=_keep_device,
    help="Where to compute: cpu, cuda, cuda:N, mps or auto.  [default: HEREDITY_DEVICE, or auto]",
)  # fmt: skip

full_option = click.option("--full", is_flag=True, help="Print all findings, not only fifteen lines.")


def open_store() -> Store:
    """Open this user's store. Raises UsageError if its path is a file."""
    from heredity.lineage.store import Store

    context = click.get_current_context(silent=True)
    store = Store(device=None if context is None else context.find_root().meta.get(_DEVICE))
    if store.root.exists() and not store.root.is_dir():
        raise UsageError(f"HEREDITY_STORE names {store.root}, which is a file. Name a folder.")
    return store


@contextlib.contextmanager
def shown_start(doing: str = "starting") -> Iterator[None]:
    """Show on a terminal that the libraries of a verb are loaded, or another work of a few seconds."""
    from heredity.core.progress import phase
    from heredity.core.terminal import Display

    with Display() as display, phase(display.live, doing):
        yield


@contextlib.contextmanager
def shown_work(store: Store, doing: str = "working") -> Iterator[Display]:
    """A display that also shows the phases of the store's work: hashing, converting, loading.

    doing: what a terminal shows until there is a phase or a step.
    """
    from heredity.core.progress import phase
    from heredity.core.terminal import Display

    with Display() as display, store.report.to(display), phase(display.live, doing):
        yield display


def _debug_option() -> click.Option:
    return click.Option([_DEBUG], is_flag=True, expose_value=False, help="Show the traceback of an error.")


@click.command("heredity", cls=_Verbs, example="heredity pull smollm2-135m-instruct", add_help_option=True)
@click.version_option(__version__, message="heredity %(version)s")
@click.pass_context
def heredity(ctx: click.Context) -> None:
    """Grow models from a foundation, record their lineage, and measure how secure each is and what it
    inherited.

    Start here: heredity demo shows a finished study, and heredity init writes one of your own. With a model
    of yours: pull, ask, study, report, gate.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Without `args`, the process's own."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        from heredity.core import host

        host.configure()
        _open_closed()
        if _DEBUG in arguments:
            import logging

            logging.basicConfig(format="%(message)s")
            logging.getLogger("heredity.study").setLevel(logging.DEBUG)  # plug-ins that fail
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        code = heredity.main(arguments, prog_name="heredity", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BaseException as error:
        return _explain(error, show_traceback=_DEBUG in arguments)


def _explain(error: BaseException, show_traceback: bool) -> int:
    """Print one line on stderr for an error, and return its exit code."""
    if isinstance(error, SystemExit):  # click raises it if the output's reader is gone
        return _closed() if error.code == 1 else 0  # and after it completed a word for a shell
    if show_traceback:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _fail("stopped. Run the same command to resume.", STOPPED)
    if isinstance(error, BrokenPipeError):
        return _closed()
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "heredity"
        return _fail(f"error: {_as_sentence(error.format_message())} Help: {command} --help", 2)
    if isinstance(error, click.ClickException):
        return _fail(f"error: {error.format_message()}", 2)
    if isinstance(error, BudgetSpent):
        return _fail(f"stopped: {error}", SPENT)
    if isinstance(error, HeredityError):
        return _fail(f"error: {error}", 2)
    if isinstance(error, MemoryError):
        return _fail(
            "error: the memory of this machine is used up. Close other programs, or ask for less.", 2
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {where}{error.strerror}", 2)
    hint = "" if show_traceback else " Run it again with --debug for the details."
    if of_plugin := registry.fault_of(error):
        return _fail(f"error: {of_plugin}{hint}", 2)
    return _fail(f"error: a fault in heredity: {type(error).__name__}: {error}.{hint}", FAULT)


def _as_sentence(message: str) -> str:
    return message if message.endswith((".", "?", "!", "?)")) else f"{message}."


def _fail(line: str, code: int) -> int:
    """Print a line on stderr. Names and paths in it may be hostile, so it is made plain first."""
    from heredity.core.sanitize import plain

    with contextlib.suppress(OSError):
        print(_for_terminal(plain(line)), file=sys.stderr, flush=True)  # noqa: T201
    return code


def _for_terminal(line: str) -> str:
    """The line as it is; on a terminal in lines that break between words, except the path of a file."""
    if not sys.stderr.isatty():
        return line
    import shutil
    import textwrap

    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _closed() -> int:
    """The reader closed the output: print nothing more, not even when Python flushes at exit."""
    import os

    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED


def _open_closed() -> None:
    """Replace streams that the caller closed (`>&-`), which are None in Python, by the null device."""
    import os

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
