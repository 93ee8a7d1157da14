"""Expect an error by its class, its code and the values that it names, whatever its wording."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import pytest

COMMAND = Path(__file__).parent / "command.py"
Error = TypeVar("Error", bound=BaseException)


@contextmanager
def raises(
    kind: type[Error], code: str = "", mentions: Iterable[object] = ()
) -> Iterator[pytest.ExceptionInfo[Error]]:
    """Expect an error of this class and code that names each of `mentions`.

    kind: the class, or a base of it. code: "" only for a class that has no codes, such as IndexError.
    mentions: values such as a file, a line, a number or the nearest known name. They stay in the message when
    its words change, so words of a sentence do not belong here.
    """
    with pytest.raises(kind) as caught:
        yield caught
    check(caught.value, code, mentions)


def check(error: BaseException, code: str = "", mentions: Iterable[object] = ()) -> None:
    """Check that an error has this code and that its message names each of `mentions`."""
    assert not isinstance(mentions, str), "mentions is a list: one value of it is not its letters"
    found = getattr(error, "code", "")
    assert found == code, f"code {found!r}, expected {code!r}: {error}"
    for value in mentions:
        assert names(str(error), value), f"{str(error)!r} does not name {value!r}"


class Done(subprocess.CompletedProcess[str]):
    """A command that ended, and the code of the error that ended it; "" without one of heredity's."""

    code = ""


def run_command(*args: str, **settings: Any) -> Done:
    """Run `heredity ARGS...` in a process of its own. settings: of subprocess.run."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "code"
        command = [sys.executable, str(COMMAND), str(note), *args]
        ran = subprocess.run(command, **{"capture_output": True, "text": True, **settings})
        done = Done(ran.args, ran.returncode, ran.stdout, ran.stderr)
        done.code = note.read_text("utf-8") if note.exists() else ""
    return done


def run_here(
    *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, input: str = ""
) -> Done:
    """Run `heredity ARGS...` in this process: as `run_command`, without the seconds that a start takes.

    env: variables that it has beside those of this process. input: what is typed.
    """
    from heredity import cli
    from heredity.core.errors import HeredityError

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    explain, codes = cli._explain, [""]

    def noting(error: BaseException, show_traceback: bool) -> int:
        codes.append(error.code if isinstance(error, HeredityError) else "")
        return explain(error, show_traceback)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(cli, "_explain", noting)
        patch.setattr(sys, "stdin", io.StringIO(input))
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        status = cli.main(list(args))
    done = Done([sys.executable, "-m", "heredity", *args], status, _text(out), _text(err))
    done.code = codes[-1]
    return done


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def check_refused(
    done: Done, code: str, mentions: Iterable[object] = (), after_progress: bool = False
) -> None:
    """Check that a command ended with exit code 2 and one line that names each of `mentions`.

    code: of the error; "" where click refuses the arguments. after_progress: there may be lines of progress
    before it.
    """
    assert done.returncode == 2, done.stderr
    assert done.code == code, f"code {done.code!r}, expected {code!r}: {done.stderr}"
    *before, line = done.stderr.removesuffix("\n").split("\n")
    assert line.startswith("error: ") and (after_progress or not before), done.stderr
    assert "Traceback" not in done.stderr
    for value in mentions:
        assert names(line, value), f"{line!r} does not name {value!r}"


def names(message: str, value: object) -> bool:
    """Whether a message names a value: as a whole word or number, so that 1 is not found in 10."""
    text = str(value)
    start = r"(?<![\w.])" if text[:1].isdigit() else r"(?<!\w)" if text[:1].isalpha() else ""
    end = r"(?![\w]|[.,]\d)" if text[-1:].isdigit() else r"(?!\w)" if text[-1:].isalpha() else ""
    return re.search(start + re.escape(text) + end, message) is not None
