"""A sandboxed Jinja environment whose renderings are bounded in work and memory, and the same on every run.

Every loop pass, call, filter and operator costs steps, in proportion to what it handles. A rendering that
spends more than its allowance stops with TooManySteps. Steps are counted, not timed: a template stops at the
same place on every machine, and no thread is left behind.

Promises: no value is built before its size is paid for. A template that renders gives the text that plain
Jinja gives. A text never contains anything that changes between runs: `random`, `lipsum`, a memory address,
the time.
Leaves to others: conversations and their allowance (codec.py).
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace, pass_context
from markupsafe import Markup

DAY = datetime(2026, 1, 1)
LONGEST_SOURCE = 1 << 16  # characters; a known model's template has 25,000 at most
_CHARACTERS = 16  # of a text that one step handles
_NODES = 16  # of a loop's body that one step pays for
_WIDEST = 10_000  # characters that a text is padded to
_DIGITS = 4096  # bits of a whole number
_FIELD = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")
_DATE = re.compile(r"(?:[^%]|%-?[aAbBcdDeFGhHIjmMpRSTuUVwWxXyYZ%])*")
_NUMBER = re.compile(r"\d+")

# What a chat template may call of Python's own values. Everything else is refused.
_TEXT = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format",
    "format_map", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier",
    "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower",
    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title",
    "upper", "zfill",
))  # fmt: skip
_MAPPING = frozenset({"get", "items", "keys", "values", "copy"})
_SEQUENCE = frozenset({"index", "count", "copy"})

# Filters that look at the top of a value only; all others pay for everything inside it.
_SHALLOW = frozenset((
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map",
    "reject", "rejectattr", "reverse", "select", "selectattr", "slice",
))  # fmt: skip
# Never seen in a chat template, and hard to bound.
_DROPPED = (
    "filesizeformat", "forceescape", "pprint", "striptags", "urlencode", "urlize", "wordwrap", "xmlattr",
)  # fmt: skip
_COMPARING = frozenset((
    "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan",
    "<=", "le", "in", "sameas",
))  # fmt: skip
_TICK, _WEIGH, _SHOW, _SPAN = "heredity_tick", "heredity_weigh", "heredity_show", "heredity_span"


class TooManySteps(Exception):
    """A rendering spent its allowance."""


class Unsteady(Exception):
    """A template's text could differ from run to run."""


class Forbidden(Exception):
    """A template asks for what no chat template may."""


class StepMeter:
    """The steps that a rendering may still spend."""

    def __init__(self, allowance: int) -> None:
        self.allowance = self.left = allowance

    def spend(self, steps: int) -> None:
        """Pay for work before it is done. Raises TooManySteps."""
        self.left -= steps
        if self.left < 0:
            raise TooManySteps(f"it takes more than {self.allowance:,} steps")


_METER: ContextVar[StepMeter] = ContextVar("meter")


def metered(allowance: int, render: Callable[[], str]) -> str:
    """Return the result of `render`, within an allowance of steps. Raises TooManySteps."""
    token = _METER.set(StepMeter(allowance))
    try:
        return render()
    finally:
        _METER.reset(token)


def environment() -> BoundedEnvironment:
    """The environment that transformers makes for chat templates, bounded."""
    return BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])


@pass_context
def _print(_: object, value: Any) -> Any:
    """Pay for a value that is about to be printed, and return it."""
    if type(value) is str:
        _METER.get().spend(1 + len(value) // _CHARACTERS)
    else:
        _show(value)
    return value


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with a meter at all that costs time or memory."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(finalize=_print, optimized=False, **settings)
        for name in _DROPPED:
            del self.filters[name]
        self.filters = {name: _paid(name, each) for name, each in self.filters.items()}
        self.filters["random"] = _unsteady("random")
        self.filters |= {_TICK: _tick, _WEIGH: _weighed, _SHOW: _shown, _SPAN: _span}
        tests: dict[str, Any] = self.tests
        self.tests = {name: _tested(name, each) for name, each in tests.items()}
        self.globals["lipsum"] = _unsteady("lipsum")
        self.globals["strftime_now"] = strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_SOURCE:
            raise Forbidden(f"it has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read")
        tree = super()._parse(source, name, filename)
        _instrument(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, paid for."""
        _OPERATORS.get(operator, _pay_sum)(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, paid for; of what a chat template may call only."""
        _pay_call(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item; to hash a nested key costs its size."""
        if not isinstance(argument, (str, int)):
            _weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which checks its widths."""
        if not isinstance(value, (types.MethodType, types.BuiltinMethodType)):
            return None
        if value.__name__ not in ("format", "format_map") or not isinstance(value.__self__, str):
            return None
        return _Format(self, value.__self__, value.__name__ == "format_map")


# --- values --------------------------------------------------------------------------------------


def _show(*values: Any) -> int:
    """Pay for values that become text. Raises Unsteady for one whose text has an address in it."""
    return _weigh(*values, is_shown=True)


def _weigh(*values: Any, is_shown: bool = False) -> int:
    """Pay for everything inside these values; the steps that it took."""
    meter, before = _METER.get(), _METER.get().left
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is str:
            meter.spend(1 + len(value) // _CHARACTERS)
            continue
        meter.spend(1)
        if kind in _ATOMS or isinstance(value, Undefined):
            continue
        if kind is range:
            meter.spend(len(value))
        elif isinstance(value, (str, bytes)):
            meter.spend(len(value) // _CHARACTERS)
        elif isinstance(value, Mapping):
            meter.spend(len(value))
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, (list, tuple)) or kind in _VIEWS:
            meter.spend(len(value))
            waiting += value
        elif isinstance(value, Namespace):
            waiting.append(object.__getattribute__(value, "_Namespace__attrs"))
        elif is_shown and not isinstance(value, (Macro, LoopContext)):
            raise Unsteady(
                f"the text of a {kind.__name__} has a memory address, which differs from run to run"
            )
    return before - meter.left


_ATOMS = (int, float, bool, type(None))
_VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))


def _count(value: Any) -> Any:
    """The value, its top paid for; an iterator pays with every item."""
    meter = _METER.get()
    if isinstance(value, (str, bytes)):
        meter.spend(1 + len(value) // _CHARACTERS)
    elif isinstance(value, Iterator):
        return _counted(value)
    elif hasattr(value, "__len__"):
        meter.spend(1 + len(value))
    return value


def _counted(items: Iterator[Any]) -> Iterator[Any]:
    meter = _METER.get()
    for item in items:
        meter.spend(1)
        yield item


def _room(n_characters: int) -> None:
    """Pay for a text that is about to be built."""
    _METER.get().spend(n_characters // _CHARACTERS)


def _within(number: Any, most: int, what: str) -> None:
    if isinstance(number, (int, float)) and not abs(number) <= most:
        raise Forbidden(f"{what} of {str(number)[:20]} is more than {most:,}")


# --- operators -----------------------------------------------------------------------------------


def _pay_sum(left: Any, right: Any) -> None:
    for value in (left, right):
        if isinstance(value, int):
            _METER.get().spend(1)
            _within(value.bit_length(), _DIGITS, "a number's length in bits")
        elif isinstance(value, (str, list, tuple)):
            _count(value)
        else:
            _weigh(value)


def _pay_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
            n = len(value) * max(0, times)
            _METER.get().spend(n // _CHARACTERS if isinstance(value, (str, bytes)) else n)
    _pay_sum(left, right)


def _pay_power(left: Any, right: Any) -> None:
    _pay_sum(left, right)
    _within(right, 256, "an exponent")
    if isinstance(left, int) and isinstance(right, int):
        _within(left.bit_length() * abs(right), _DIGITS, "a number's length in bits")


def _pay_modulo(left: Any, right: Any) -> None:
    if not isinstance(left, str):
        _pay_sum(left, right)
        return
    steps = _show(right)  # a field may repeat the largest value
    for field in _FIELD.finditer(left):
        for width in field.groups(""):
            if width == "*":
                raise Forbidden("a width that a value says is not taken")
            _within(int(width[:9] or 0), _WIDEST, "a width")
        _METER.get().spend(steps + sum(int(width or 0) for width in field.groups("")) // _CHARACTERS)


_OPERATORS: dict[str, Callable[[Any, Any], None]] = {"*": _pay_product, "**": _pay_power, "%": _pay_modulo}


# --- calls ---------------------------------------------------------------------------------------


def _pay_call(what: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(what, (Macro, LoopContext, _Format, Undefined)):  # their own bodies are paid for
        _METER.get().spend(1)
        return
    if isinstance(what, types.MethodType | types.BuiltinMethodType) and what.__self__ is not None:
        _pay_method(what.__self__, what.__name__, args, kwargs)
        return
    is_function = isinstance(what, types.FunctionType)  # ours and Jinja's: a template makes none
    _weigh(*args, *kwargs.values(), is_shown=is_function)
    if not (is_function or isinstance(what, Joiner) or what in _CLASSES):
        raise Forbidden(f"it calls a {type(what).__name__}, which no chat template may")


_CLASSES = (dict, Namespace, Cycler, Joiner)


def _pay_method(of: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(of, (LoopContext, Cycler, Macro)):
        _weigh(*args, *kwargs.values())
        return
    if isinstance(of, str) and name in _TEXT:
        _count(of)
        _pay_text(of, name, args, kwargs)
    elif isinstance(of, Mapping) and name in _MAPPING:
        _METER.get().spend(1 + (len(of) if name == "copy" else 0))
        _weigh(*args)
    elif isinstance(of, (list, tuple)) and name in _SEQUENCE:
        _count(of) if name == "copy" else _weigh(of, *args)
    else:
        raise Forbidden(f"it calls {type(of).__name__}.{name}, which no chat template may")


def _pay_text(of: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = [*args, *kwargs.values()]
    if name == "join" and args:
        _show(args[0])
        _room(len(of) * (len(args[0]) if hasattr(args[0], "__len__") else 0))
        return
    _weigh(*given)
    if name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        _room((of.count(args[0]) if args[0] else len(of) + 1) * len(args[1]))
    elif name in ("center", "ljust", "rjust", "zfill") and args:
        _within(args[0], _WIDEST, "a width")
        _room(_WIDEST)
    elif name == "expandtabs":
        for width in given:
            _within(width, 64, "a tab")
        _room(64 * of.count("\t"))
    elif name in ("split", "rsplit", "splitlines"):
        _METER.get().spend(_n_parts(of, name, given))


def _n_parts(of: str, name: str, given: list[Any]) -> int:
    if name == "splitlines":
        return of.count("\n") + of.count("\r")
    separator = given[0] if given and isinstance(given[0], str) else None
    return of.count(separator) if separator else len(of) // 2


class _Format:
    """`str.format` of one text."""

    def __init__(self, environment: BoundedEnvironment, text: str, is_map: bool) -> None:
        self._environment, self._text, self._is_map = environment, text, is_map

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """The text with its fields filled."""
        if self._is_map:
            (kwargs,), args = args, ()
        kind = _EscapedFields if isinstance(self._text, Markup) else _Fields
        return type(self._text)(kind(self._environment).vformat(self._text, args, kwargs))


def _pay_field(value: Any, form: str) -> None:
    """Pay for one field; its width may come from a value."""
    for found in _NUMBER.findall(form):
        _within(int(found[:9]), _WIDEST, "a width")
        _room(int(found[:9]))
    _show(value)


class _Fields(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        """The text of one field."""
        _pay_field(value, format_spec)
        return super().format_field(value, format_spec)


class _EscapedFields(SandboxedEscapeFormatter):
    def __init__(self, environment: BoundedEnvironment) -> None:
        super().__init__(environment, escape=Markup.escape)

    def format_field(self, value: Any, format_spec: str) -> str:
        """The escaped text of one field."""
        _pay_field(value, format_spec)
        return super().format_field(value, format_spec)


def strftime_now(form: str) -> str:
    """One fixed day in the given form: a prompt must be the same on every day."""
    if not _DATE.fullmatch(form):
        raise Forbidden("strftime_now takes the usual letters of a date only")
    return DAY.strftime(form)


def _unsteady(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise Unsteady(f"it uses '{name}', which differs from run to run")

    return refuse


# --- filters and tests ---------------------------------------------------------------------------


def _paid(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays before it works. The value is the first argument behind a passed context."""
    at = 1 if hasattr(inner, "jinja_pass_arg") else 0
    check = _CHECKS.get(name)

    def paid(*args: Any, **kwargs: Any) -> Any:
        value, rest = args[at], args[at + 1 :]
        if name in _SHALLOW:
            value = _count(value)
        else:
            if isinstance(value, Iterator):
                value = list(_counted(value))
            _show(value)
        _weigh(*rest, *kwargs.values(), is_shown=name in _CHECKS)
        if check is not None:
            check(value, rest, kwargs)
        return inner(*args[:at], value, *rest, **kwargs)

    return _like(inner, paid)


def _tested(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    at = 1 if hasattr(inner, "jinja_pass_arg") else 0

    def tested(*args: Any, **kwargs: Any) -> Any:
        if name in _COMPARING:
            _weigh(*args[at:], *kwargs.values())
        else:
            _METER.get().spend(1)
        return inner(*args, **kwargs)

    return _like(inner, tested)


def _like(inner: Callable[..., Any], outer: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(inner, "jinja_pass_arg"):
        outer.jinja_pass_arg = inner.jinja_pass_arg  # type: ignore[attr-defined]
    return outer


Check = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


def _narrow(most: int, what: str) -> Check:
    """Refuse numbers and texts that widen a value too much."""

    def check(value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        n_lines = value.count("\n") + 1 if isinstance(value, str) else 1
        for given in (*rest, *kwargs.values()):
            _within(given, most, what)
            if isinstance(given, str):
                _within(len(given), most, what)
                _room(n_lines * len(given))
            elif isinstance(given, int):
                _room(n_lines * abs(given))

    return check


def _check_json(value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for given in (*rest, *kwargs.values()):
        _within(given, 16, "an indent")
        for text in given if isinstance(given, (list, tuple)) else (given,):
            if isinstance(text, str):
                _within(len(text), 16, "an indent")
    _METER.get().spend(_depth(value) if rest or kwargs else 0)


def _depth(value: Any) -> int:
    """How many levels of indent its items have, all together."""
    total, waiting = 0, [(value, 1)]
    while waiting:
        each, level = waiting.pop()
        total += level
        if isinstance(each, Mapping):
            waiting += [(inner, level + 1) for inner in each.values()]
        elif isinstance(each, (list, tuple)):
            waiting += [(inner, level + 1) for inner in each]
    return total


def _check_join(value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    between = rest[0] if rest else kwargs.get("d", "")
    _room((len(value) if hasattr(value, "__len__") else 0) * len(str(between)))


def _check_replace(value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = dict(zip(("old", "new"), rest, strict=False)) | kwargs
    text, old, new = str(value), str(given.get("old", "")), str(given.get("new", ""))
    _room((text.count(old) if old else len(text) + 1) * len(new))


def _check_format(value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _pay_modulo(str(value), kwargs or rest)


def _check_sum(value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
    start = rest[1] if len(rest) > 1 else kwargs.get("start", 0)
    if not isinstance(start, (int, float)):
        raise Forbidden("sum adds numbers only")


def _check_round(value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for given in (*rest, *kwargs.values()):
        _within(given, 100, "a precision")
    if isinstance(value, float) and not math.isfinite(value):
        raise Forbidden("round takes finite numbers only")


_CHECKS: dict[str, Check] = {
    "batch": _narrow(_WIDEST, "a size"),
    "slice": _narrow(_WIDEST, "a number of slices"),
    "center": _narrow(_WIDEST, "a width"),
    "indent": _narrow(1000, "an indent"),
    "tojson": _check_json,
    "join": _check_join,
    "replace": _check_replace,
    "format": _check_format,
    "sum": _check_sum,
    "round": _check_round,
}


def pay_for_filter(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of another's under a name of Jinja's, paid for as that one is."""
    return _paid(name, inner)


# --- the template's own code -----------------------------------------------------------------------


@pass_context
def _tick(_: object, value: Any, steps: int) -> Any:
    _METER.get().spend(steps)
    return value


@pass_context
def _weighed(_: object, value: Any) -> Any:
    """A value that is compared, hashed or joined to a text."""
    if type(value) not in _ATOMS:
        _weigh(value)
    return value


@pass_context
def _shown(_: object, value: Any) -> Any:
    """A value that becomes part of a text."""
    _show(value)
    return value


@pass_context
def _span(_: object, value: Any) -> Any:
    """A value of which a part is copied."""
    return _count(value)


def _instrument(tree: nodes.Template) -> None:
    """Put a price on every loop pass, macro body, comparison, key, concatenation and slice."""
    for loop in list(tree.find_all(nodes.For)):
        price = _price(loop.body)
        loop.body.insert(0, _ticking(price, loop.lineno))
        if loop.test is not None:
            loop.test = _applied(_TICK, loop.test, _price([loop.test]))
    macros: list[Any] = [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
    for macro in macros:
        macro.body.insert(0, _ticking(_price(macro.body), macro.lineno))
    for compared in list(tree.find_all(nodes.Compare)):
        compared.expr = _applied(_WEIGH, compared.expr)
        for operand in compared.ops:
            operand.expr = _applied(_WEIGH, operand.expr)
    for joined in list(tree.find_all(nodes.Concat)):
        joined.nodes = [_applied(_SHOW, each) for each in joined.nodes]
    for pair in list(tree.find_all(nodes.Pair)):
        if not isinstance(pair.key, nodes.Const):
            pair.key = _applied(_WEIGH, pair.key)
    for item in list(tree.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _applied(_SPAN, item.node)


def _price(body: list[Any]) -> int:
    """Steps of a body: by its size, whatever of it is rendered. Bodies inside it pay for themselves."""
    n_nodes = n_characters = 0
    waiting: list[nodes.Node] = list(body)
    while waiting:
        node = waiting.pop()
        n_nodes += 1
        if isinstance(node, nodes.TemplateData):
            n_characters += len(node.data)
        if not isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            waiting += node.iter_child_nodes()
    return 1 + n_nodes // _NODES + n_characters // (4 * _CHARACTERS)


def _ticking(steps: int, line: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_applied(_TICK, nodes.Const(None), steps), lineno=line)


def _applied(name: str, node: Any, *given: int) -> nodes.Filter:
    args = [nodes.Const(each) for each in given]
    return nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)
