"""The steps that a rendering may spend, and what the size of a value costs.

Promises: every text, number and container is paid for in proportion to its size, what it contains included.
A value whose text differs from run to run is refused.
Leaves to others: which operations a template may use, and what each of them costs (codec.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from contextvars import ContextVar

from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.utils import Namespace

CHARACTERS = 16  # of a text that one step handles
_DEEPEST = 200  # containers in each other; to hash a nested tuple takes C stack, without a limit
_WORD, _MAX_BITS = 60, 4096  # of a whole number; a longer one than the first pays for every bit


class TemplateStopped(Exception):
    """A template took too many steps, could differ from run to run, or used what no template may."""


class StepMeter:
    """The steps that a rendering may still spend."""

    def __init__(self, allowance: int) -> None:
        self.allowance = self.left = allowance

    def spend(self, steps: int) -> None:
        """Pay for work before it is done. Raises TemplateStopped."""
        if steps > 0:  # no operation earns steps
            self.left -= steps
        if self.left < 0:
            raise TemplateStopped(f"it takes more than {self.allowance:,} steps")


_METER: ContextVar[StepMeter] = ContextVar("meter")


def metered(allowance: int, render: Callable[[], str]) -> str:
    """Return the result of `render`, within an allowance of steps. Raises TemplateStopped."""
    token = _METER.set(StepMeter(allowance))
    try:
        return render()
    finally:
        _METER.reset(token)


_ATOMS = (int, float, bool, type(None))


def weigh(*values: object, is_shown: bool = False) -> int:
    """Pay for everything inside these values; return the steps.

    is_shown: the values become text. Raises TemplateStopped for a value whose text has its address.
    """
    meter, before = _METER.get(), _METER.get().left
    level, depth = list(values), 0
    while level:
        bound(depth, _DEEPEST, "the depth of a value")
        below: list[object] = []
        for value in level:
            if isinstance(value, (str, bytes)):
                meter.spend(1 + len(value) // CHARACTERS)
                continue
            if type(value) in _ATOMS:
                meter.spend(_price_of_number(value) if isinstance(value, int) else 1)
                continue
            meter.spend(1)
            if isinstance(value, Namespace):
                value = object.__getattribute__(value, "_Namespace__attrs")
            if isinstance(value, range):
                meter.spend(len(value) * max(map(_price_of_number, (value.start, value.stop))))
            elif isinstance(value, Collection):
                meter.spend(len(value))
                if isinstance(value, Mapping):
                    below += value.values()
                below += value
            elif isinstance(value, LoopContext):  # whoever reads it runs its loop, which has no price here
                raise TemplateStopped("it uses a loop as a value")
            elif is_shown and not isinstance(value, (Undefined, Macro)):
                kind = type(value).__name__
                raise TemplateStopped(
                    f"the text of a {kind} has a memory address, which differs from run to run"
                )
        level, depth = below, depth + 1
    return before - meter.left


def _price_of_number(number: int) -> int:
    """Return the steps of a whole number. Long ones can be long texts, or share one hash."""
    n_bits = number.bit_length()
    bound(n_bits, _MAX_BITS, "a number's length in bits")
    return n_bits if n_bits > _WORD else 1


def weigh_top(value: object) -> object:
    """Pay for the top of a value and return it; an iterator pays with every item."""
    if isinstance(value, (str, bytes)):
        spend(1 + len(value) // CHARACTERS)
    elif isinstance(value, Iterator):
        return paid_items(value)
    elif isinstance(value, Sized):
        spend(1 + len(value))
    return value


def paid_items(items: Iterator[object]) -> Iterator[object]:
    """The items, each of which pays one step as it comes."""
    meter = _METER.get()
    for item in items:
        meter.spend(1)
        yield item


def spend(steps: int) -> None:
    """Pay for work before it is done. Raises TemplateStopped."""
    _METER.get().spend(steps)


def bound(number: object, most: int, what: str) -> None:
    """Raise TemplateStopped for a number that is larger than `most`, or not a number (NaN)."""
    if isinstance(number, (int, float)) and not abs(number) <= most:
        raise TemplateStopped(f"{what} of {str(number)[:20]} is more than {most:,}")
