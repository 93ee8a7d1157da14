"""The root command: what it loads, and what it says when something is wrong."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from heredity.cli import FAULT, SECTIONS, STOPPED, Name, PathArgument, _folded, heredity, main
from heredity.core import registry
from heredity.core.errors import HeredityError
from tests.support.errors import check_refused, raises, run_command, run_here

HEAVY = {
    "torch", "numpy", "scipy", "rich", "jinja2", "httpx", "msgspec", "transformers", "gguf", "safetensors",
    "huggingface_hub", "filelock", "sqlite3", "tomllib", "json", "asyncio", "ssl",
}  # fmt: skip


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has after running `code`."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stderr.split())


def own(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == "heredity"}


@pytest.mark.slow
def test_importing_heredity_loads_itself_and_nothing_else() -> None:
    modules = loaded("import heredity")
    assert own(modules) == {"heredity", "heredity.core"}
    assert not modules & HEAVY


@pytest.mark.slow
def test_help_loads_the_group_and_no_verb() -> None:
    modules = loaded("from heredity.cli import main\nassert main(['--help']) == 0")
    ground = {f"heredity.core{name}" for name in ("", ".errors", ".host", ".registry")}
    assert own(modules) == {"heredity", "heredity.cli", *ground}
    assert not modules & HEAVY


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for section in SECTIONS.values() for verb in section])
def test_help_of_a_verb_has_an_example_and_loads_no_torch(verb: str) -> None:
    code = f"from heredity.cli import main\nassert main(['{verb}', '--help']) == 0"
    modules = loaded(code)
    assert not modules & {"torch", "transformers", "numpy", "scipy", "httpx"}
    example = run_here(verb, "--help").stdout.partition("Example:\n")[2]
    assert example.strip().startswith(f"heredity {verb}")


@pytest.mark.slow
def test_a_question_loads_no_judge_unless_a_guard_needs_one() -> None:
    modules = loaded("from heredity.cli import main\nassert main(['ask', 'scripted:helpful', 'hello']) == 0")
    assert "heredity.engines.scripted" in modules
    assert not {name for name in modules if name.startswith(("heredity.redteam.judges", "heredity.stats"))}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["export", "--help"], ["export", "nowhere", "out", "--to", "gguf"]])
def test_export_loads_no_torch_before_it_has_a_model(arguments: list[str], tmp_path: Path) -> None:
    store = f"import os\nos.environ['HEREDITY_STORE'] = {str(tmp_path)!r}\n"
    modules = loaded(f"{store}from heredity.cli import main\nmain({arguments!r})")
    assert "heredity.cli.export" in modules
    assert not modules & {"torch", "transformers", "numpy", "heredity.deploy.export"}


VERBS = [verb for section in SECTIONS.values() for verb in section]


def command_of(verb: str) -> click.Command:
    command = heredity.get_command(click.Context(heredity), verb)
    assert command is not None
    return command


def test_the_verbs_in_the_help_are_those_of_the_files_on_disk() -> None:
    homes = {getattr(command_of(verb).callback, "__module__", "") for verb in VERBS}
    assert homes == {f"heredity.cli.{name}" for name in registry.names("cli")}


@pytest.mark.parametrize("verb", VERBS)
def test_the_verbs_own_help_opens_with_the_purpose_in_the_root_help(verb: str) -> None:
    command = command_of(verb)
    assert command.help is not None
    purpose = next(section[verb] for section in SECTIONS.values() if verb in section)
    assert command.name == verb
    assert " ".join(command.help.split("\n\n")[0].split()) == purpose


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["stdy"], ["stdy", "study", "heredity --help"]),
        (["attacks", "--jsn"], ["--json", "heredity attacks --help"]),
        (["ask"], ["heredity ask --help"]),
        (["probes", "lst"], ["probes", "lst", "list"]),
    ],
)
def test_a_slip_of_the_fingers_gets_the_nearest_name_in_one_line_and_exit_2(
    args: list[str], named: list[str]
) -> None:
    run = run_command(*args)
    check_refused(run, run.code, mentions=named)
    assert run.stdout == ""


def helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Every command below this one, with its help as a terminal of 80 columns shows it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from helps(below, click.Context(below, context, name, terminal_width=80))


def test_every_help_fits_into_80_columns_and_names_each_purpose_whole() -> None:
    shown = dict(helps(heredity, click.Context(heredity, info_name="heredity", terminal_width=80)))
    assert len(shown) > 40
    lines = [(path, line) for path, text in shown.items() for line in text.splitlines()]
    assert [each for each in lines if len(each[1]) > 80] == []
    assert [each for each in lines if re.match(r"  \w+  .*\.\.\.$", each[1])] == []  # cut by click


def test_an_example_over_several_lines_is_one_command() -> None:
    folded = _folded("heredity derive ablate MODEL --harmful a.csv --harmless b.csv --columns x=y", 40)
    assert max(map(len, folded.splitlines())) <= 40 and " \\\n" in folded
    assert shlex.split(folded.replace("\\\n", ""))[-6:] == [
        "--harmful",
        "a.csv",
        "--harmless",
        "b.csv",
        "--columns",
        "x=y",
    ]


def test_heredity_alone_prints_its_help() -> None:
    run = run_here()
    assert run.returncode == 0
    assert "Measure:" in run.stdout and "study" in run.stdout


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(heredity, "invoke", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (HeredityError("no such thing"), 2, "error: no such thing\n"),
        (FileNotFoundError(2, "No such file or directory", "a.toml"), 2, "error: a.toml: No such file"),
        (MemoryError(), 2, "error: the memory of this machine is used up."),
        (KeyboardInterrupt(), STOPPED, "Run the same command to resume."),
        (ValueError("x"), FAULT, "error: a fault in heredity: ValueError: x. Run it again with --debug"),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    raising(monkeypatch, error)
    assert main(["attacks"]) == code
    assert said in capsys.readouterr().err


def test_a_fault_never_exits_1_which_would_mean_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, RuntimeError("anything"))
    assert main(["gate", "x"]) not in (0, 1, 3, 4)


def test_debug_shows_the_traceback_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, HeredityError("no such thing"))
    for args in (["--debug", "attacks"], ["attacks", "--debug"]):
        assert main(args) == 2
        assert "Traceback" in capsys.readouterr().err


def test_an_error_cannot_speak_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, HeredityError("model \x1b]0;owned\x07\x1b[2J named\nso"))
    main(["attacks"])
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\x07" not in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from heredity.cli import main; sys.exit(main(['attacks', '--json']))"
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() not in (1, 2)
    run.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_fault(closed: str) -> None:
    shell = f'"{sys.executable}" -m heredity attacks {closed}'
    assert subprocess.run(["sh", "-c", shell], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_text_that_the_terminal_cannot_encode_is_escaped() -> None:
    env = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    code = "import sys; from heredity.cli import main; main(['attacks']); print('\\u2026')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 0, run.stderr
    assert "\\u2026" in run.stdout


def parameters(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    """Every parameter of a command and of the commands in it, with the words that lead there."""
    for parameter in command.params:
        yield path, parameter
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from parameters(inner, (*path, name))


def test_no_parameter_takes_an_empty_text() -> None:
    """An empty variable of a shell script would quietly be the current folder, or no name at all."""
    texts = [
        (path, parameter)
        for path, parameter in parameters(heredity)
        if isinstance(parameter.type, (click.Path, click.types.StringParamType))
    ]
    assert {"ask", "gate", "study"} <= {path[0] for path, _ in texts}
    for path, parameter in texts:
        assert isinstance(parameter.type, (PathArgument, Name)), (*path, parameter.name)
        with raises(click.BadParameter):
            parameter.type.convert("", parameter, None)


@pytest.mark.parametrize("args", [["gate", ""], ["pull", ""], ["ask", "", "Hi"], ["verify", ""]])
def test_an_empty_name_is_one_line_and_exit_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    said = capsys.readouterr().err
    assert "must not be empty" in said and said.count("\n") == 1


@pytest.mark.parametrize("amount", ["nan", "inf", "-1"])
def test_what_is_no_number_is_no_temperature_and_no_bound(
    amount: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "scripted:careful", "Hi", f"--temperature={amount}"]) == 2
    assert "temperature must be a number of 0 or more" in capsys.readouterr().err
    assert main(["study", "--model", "scripted:careful", f"--max-cost={amount}"]) == 2
    assert "--max-cost" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["study"], ["corpus", "build"], ["derive", "lora"]])
def test_help_prints_what_the_option_prints(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb, "--help"]) == 0
    option = capsys.readouterr().out
    assert main(["help", *verb]) == 0
    assert capsys.readouterr().out == option


@pytest.mark.parametrize("verb", [["studdy"], ["derive", "lorra"], ["pull", "model"]])
def test_help_for_an_unknown_verb_is_refused(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", *verb]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_version_is_a_verb_and_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    verb = capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == verb
