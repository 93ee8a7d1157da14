"""Builds of a corpus that end like one that is killed, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heredity.core.errors import Busy, UsageError
from heredity.core.files import Lock
from heredity.corpus import recipe as recipes
from heredity.corpus import workspace
from tests.support import forkserver
from tests.support.errors import raises

# The process kills itself where it writes, moves or removes a file below its own folder for the n-th time:
# those are the moments at which the disk is another.
_DYING = """
import os, signal, sys
from pathlib import Path
from heredity.cli import main
n_left, work = int(sys.argv[1]), sys.argv[2]
def counted(event, given):
    global n_left
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and work in str(given[0]):
        if event == "open" and not (isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        n_left -= 1
        if n_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(counted)
sys.argv[1:] = sys.argv[3:]
sys.exit(main())
"""


class Heard:
    """A Watch that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: dict[str, int] = {}

    def at(self, what: str, done: int, total: int) -> None:
        assert 0 < done <= total
        self.done[what] = done

    def say(self, line: str) -> None:
        self.lines.append(line)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def command(recipe: Path, out: Path, workers: int = 1) -> list[str]:
    return ["corpus", "build", str(recipe), "--out", str(out), "--workers", str(workers)]


def die(recipe: Path, out: Path, moment: int) -> bool:
    """Build until something is written for the n-th time; whether that came before the end.

    Killed when the plan was gone, and a lock alone was left, it had ended: a built corpus is there.
    """
    given = ["-c", _DYING, str(moment), str(workspace.place_of(out)), *command(recipe, out)]
    ended = forkserver.run(given, out.parent)
    has_ended = "exists already" in ended.stderr
    assert ended.returncode in ((0, 2) if has_ended else (0, -9)), ended.stderr
    return ended.returncode == -9


def assert_put_is_built(
    build: Callable[..., object],
    opened: Callable[[Path], Any],
    recipe: Path,
    out: Path,
    patch: pytest.MonkeyPatch,
) -> None:
    """A build that ended when the corpus had just been put into its place has built it."""

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with patch.context() as one:
        one.setattr(f"{build.__module__}.sync_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            build(recipes.read(recipe), out)
    assert out.exists() and not nothing_is_left(out)
    card = build(recipes.read(recipe), out)
    assert card == opened(out).card and nothing_is_left(out)
    with raises(UsageError, "bad-usage"):
        build(recipes.read(recipe), out)


def assert_one_at_a_time(build: Callable[..., object], recipe: Path, out: Path) -> None:
    """Two builds do not share a folder."""
    with Lock(workspace.place_of(out)), raises(Busy, "busy"):
        build(recipes.read(recipe), out)


def nothing_is_left(out: Path) -> bool:
    """Whether the hidden folder of a build is gone."""
    return not workspace.place_of(out).exists()
