"""Functions that tests offer as tools. They run in another process, which imports this file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

_NOTES: list[str] = []
RAN = "HEREDITY_TEST_RAN"  # of the environment: a file that gets a line for each call that ran


def _ran(what: str) -> None:
    if path := os.environ.get(RAN):
        with Path(path).open("a") as file:
            file.write(f"{what}\n")


def lookup(number: Annotated[int, "of the order"], detail: Literal["short", "long"] = "short") -> str:
    """Look up an order.

    Only this paragraph's neighbour above describes it.
    """
    print("what a tool prints is not its result")  # noqa: T201
    _ran(f"lookup {number}")
    return f"Order {number} is sent ({detail})."


def pay(to: str, amount: float) -> None:
    """Pay somebody."""
    _ran(f"pay {to} {amount:g}")


def note(text: str) -> str:
    """Keep a note."""
    _NOTES.append(text)
    return "Kept."


def notes() -> list[str]:
    """List the notes."""
    return _NOTES


def once() -> str:
    """Keep a note, but the second time end the process."""
    has_run = Path(os.environ[RAN]).exists()
    _ran("once")
    if has_run:
        os._exit(3)
    return note("once")


def flaky() -> str:
    """End the process, but only the first time."""
    is_first = not Path(os.environ[RAN]).exists()
    _ran("flaky")
    if is_first:
        os._exit(3)
    return note("flaky")


def meet(name: str, of: int) -> str:
    """Wait until so many have called."""
    _ran(f"meet {name}")
    until = time.monotonic() + 60
    while Path(os.environ[RAN]).read_text().count("meet") < of:
        if time.monotonic() > until:
            raise TimeoutError("nobody came")
        time.sleep(0.01)
    return f"{name} met."


def clock() -> float:
    """Tell the time: no two calls are alike."""
    _ran("clock")
    return time.monotonic()


def hang() -> None:
    """Never come back."""
    _ran("meet hang")
    time.sleep(600)


def hang_once() -> str:
    """Hang, but only the first time."""
    before = Path(os.environ[RAN])
    is_first = not before.exists() or "hang" not in before.read_text()
    _ran("hang")
    if is_first:
        time.sleep(600)
    return "Back."


def crash() -> None:
    """End the process."""
    os._exit(3)


def leave() -> None:
    """Exit as a script does."""
    raise SystemExit("over")


def fail() -> None:
    """Raise an error with characters that a terminal obeys."""
    raise ValueError("no such \x1b[31morder")


def flood() -> str:
    """Return ten megabytes."""
    return "x" * 10_000_000


def hostile() -> str:
    """Return what no encoding holds, and what a terminal obeys."""
    return "a\ud800b\x1b[2Jc"


async def later(tags: list[str]) -> dict[str, Any]:
    """Answer from a coroutine."""
    return {"tags": tags}


def unnamed(*numbers: int) -> int:
    """A model cannot name its arguments."""
    return sum(numbers)
