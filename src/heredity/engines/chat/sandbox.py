"""A sandboxed Jinja environment for chat templates: bounded work and memory, the same text on every run.

A chat template is a program by the author of a model. Every loop pass, call, filter and operator costs steps,
in proportion to the values that it handles. A rendering that spends more than its allowance is stopped. Steps
are counted, not timed: a template stops at the same place on every machine, and no thread is left behind.

For a review: first the price of a value (steps.py). Then the lists of what a template may use; anything else
is refused. Then the hooks of Jinja (`BoundedEnvironment`), and the price of each operation whose result can
be larger than its operands. Last the code that has no hook (`_instrument`).

Promises: no value is built before its size is paid for. A template that renders gives the text that plain
Jinja gives. A text never contains anything that changes between runs: `random`, `lipsum`, a memory address.
Leaves to others: the meter (steps.py), conversations and their allowance, and the fixed day of
`strftime_now` (codec.py).
"""

from __future__ import annotations

import functools
import re
import string
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from typing import NoReturn, cast

from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from heredity.engines.chat.steps import (
    CHARACTERS,
    TemplateStopped,
    bound,
    paid_items,
    spend,
    weigh,
    weigh_top,
)

LONGEST_SOURCE = 1 << 16  # characters; a known model's template has 25,000 at most
_NODES = 16  # of a loop's body that one step pays for
_WIDEST = 10_000  # characters that a field is padded to; also any number that a filter is given

# What a template may use of Python and Jinja.
_STRING_METHODS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
    "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper",
))  # fmt: skip
_MAPPING_METHODS = frozenset({"get", "items", "keys", "values", "copy"})
_SEQUENCE_METHODS = frozenset({"index", "count", "copy"})
_CLASSES = (dict, Namespace, Cycler, Joiner)
# Methods that search from the right, or for any of some characters.
_SEARCHES = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"})
# Filters that look at the top of a value only, and those that pay for everything inside it.
_SHALLOW_FILTERS = frozenset((
    "attr", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject",
    "rejectattr", "reverse", "select", "selectattr",
))  # fmt: skip
_DEEP_FILTERS = frozenset((
    "abs", "capitalize", "dictsort", "e", "escape", "float", "format", "groupby", "indent", "int", "join",
    "lower", "max", "min", "replace", "round", "safe", "sort", "string", "sum", "title", "tojson", "trim",
    "truncate", "unique", "upper", "wordcount",
))  # fmt: skip
# Tests that look at the top of a value only. The others pay for everything inside it.
_SHALLOW_TESTS = frozenset((
    "boolean", "callable", "defined", "escaped", "false", "float", "integer", "iterable", "mapping", "none",
    "number", "sequence", "string", "true", "undefined",
))  # fmt: skip
_NUMBER_TESTS = frozenset({"divisibleby", "even", "odd"})  # they apply % to the value
# Filters that look up an attribute of every item, and the place of its name among their arguments.
_ATTRIBUTE_AT = {
    "groupby": 0, "join": 1, "max": 1, "min": 1, "rejectattr": 0, "selectattr": 0, "sort": 2, "sum": 0,
    "unique": 1,
}  # fmt: skip
_MOST_PARTS = 16  # of the name of an attribute
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # of str.splitlines
_PERCENT_FIELD = re.compile(r"%(?:\([^()]*([()]?))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?[hlL]?.?", re.DOTALL)
_NUMBER = re.compile(r"\d+")
_CHARGE = "heredity_charge"  # the filter that `_instrument` puts into a template

Filter = Callable[..., object]
Arguments = Sequence[object]
Keywords = Mapping[str, object]


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment that transformers makes for chat templates, with a meter on time and memory."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, to_json: Filter, functions: Mapping[str, Filter]) -> None:
        """to_json: the filter `tojson`. functions: those that a template may call by their name."""
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=_charge, optimized=False
        )
        known: dict[str, Filter] = {**self.filters, "tojson": to_json}
        self.filters = {name: _refuse(f"it uses the filter '{name}'") for name in known}
        self.filters |= {name: _paid_filter(name, known[name]) for name in _SHALLOW_FILTERS | _DEEP_FILTERS}
        self.filters[_CHARGE] = _charge
        tests = cast(Mapping[str, Filter], self.tests)
        self.tests = {name: _paid_test(name, each) for name, each in tests.items()}
        self.globals["lipsum"] = _refuse("it uses 'lipsum', which differs from run to run")
        self.globals |= functions

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_SOURCE:
            raise TemplateStopped(f"it has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read")
        tree = super()._parse(source, name, filename)
        _instrument(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Pay for an operator and apply it."""
        _OPERATORS.get(operator, _pay_operands)(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:
        """Pay for a call and make it, if a chat template may make it."""
        _pay_call(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: object, argument: object) -> object:
        """Return an item. To hash a nested key costs its size."""
        if not isinstance(argument, (str, int)):
            weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """Return `str.format` with a price, in place of the method; None for any other value."""
        fill = super().wrap_str_format(value)
        if fill is None or not isinstance(value, types.BuiltinMethodType | types.MethodType):
            return None
        text = str(value.__self__)

        def paid(*args: object, **kwargs: object) -> str:
            _pay_format(text, args, kwargs)
            return fill(*args, **kwargs)

        return paid if value.__name__ == "format" else _refuse(f"it calls str.{value.__name__}")


def _refuse(why: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise TemplateStopped(why)

    return refuse


# --- operators, calls and methods -----------------------------------------------------------------


def _pay_operands(left: object, right: object) -> None:
    for value in (left, right):
        if isinstance(value, (str, list, tuple)):
            weigh_top(value)
        elif isinstance(value, Set):  # the difference of two views is a set
            raise TemplateStopped("it subtracts sets, whose order differs from run to run")
        else:
            weigh(value)


def _pay_product(left: object, right: object) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, (str, bytes, list, tuple)):
            spend(len(value) * max(0, times))
    _pay_operands(left, right)


def _pay_modulo(left: object, right: object) -> None:
    if not isinstance(left, str):
        _pay_operands(left, right)
        return
    steps = weigh(right, is_shown=True)
    for field in _PERCENT_FIELD.finditer(left):
        name_end, *widths = field.groups("")
        if name_end == "(":
            raise TemplateStopped("the name of a field has parentheses")
        _pay_field(steps, widths)


_OPERATORS = {"*": _pay_product, "**": _refuse("it uses **"), "%": _pay_modulo}


def _pay_format(text: str, args: Arguments, kwargs: Keywords) -> None:
    steps = weigh(*args, *kwargs.values(), is_shown=True)
    for _, name, form, _ in string.Formatter().parse(text):
        if name is not None:
            if name and not (name.isidentifier() or name.isdecimal()):
                raise TemplateStopped("a field of str.format must be a name or a number")
            _pay_field(steps, ["*"] if "{" in (form or "") else _NUMBER.findall(form or ""))


def _pay_field(steps: int, widths: Iterable[str]) -> None:
    """Pay for a field of a format. `steps`: the price of all values, for a field may repeat the largest."""
    spend(steps)
    for width in filter(None, widths):
        if width == "*":
            raise TemplateStopped("the width of a field must be a number")
        bound(int(width), _WIDEST, "a width")
        spend(int(width) // CHARACTERS)


def _pay_call(what: object, args: Arguments, kwargs: Keywords) -> None:
    if isinstance(what, (Macro, LoopContext, Undefined)):  # their own bodies are paid for
        spend(1 + len(args) + len(kwargs))
    elif isinstance(what, types.MethodType | types.BuiltinMethodType) and what.__self__ is not None:
        _pay_method(what.__self__, what.__name__, args, kwargs)
    else:
        is_function = isinstance(what, types.FunctionType)  # ours and Jinja's: a template makes none
        weigh(*args, *kwargs.values(), is_shown=is_function)
        if not (is_function or isinstance(what, Joiner) or what in _CLASSES):
            raise TemplateStopped(f"it calls a {type(what).__name__}")


def _pay_method(of: object, name: str, args: Arguments, kwargs: Keywords) -> None:
    if isinstance(of, (LoopContext, Cycler, Macro)):
        weigh(*args, *kwargs.values())
    elif isinstance(of, str) and name in _STRING_METHODS:
        weigh_top(of)
        _pay_string_method(of, name, args, kwargs)
    elif isinstance(of, Mapping) and name in _MAPPING_METHODS:
        spend(1 + (len(of) if name == "copy" else 0))
        weigh(*args)
    elif isinstance(of, (list, tuple)) and name in _SEQUENCE_METHODS:
        weigh_top(of) if name == "copy" else weigh(of, *args)
    else:
        raise TemplateStopped(f"it calls {type(of).__name__}.{name}")


def _pay_string_method(of: str, name: str, args: Arguments, kwargs: Keywords) -> None:
    given = [*args, *kwargs.values()]
    weigh(*given, is_shown=name == "join")
    if name == "join" and given:
        _pay_join(given[0], of)
    elif name == "replace" and len(args) > 1:
        _pay_replace(of, args[0], args[1])
    elif name == "splitlines":
        spend(_count_lines(of))
    elif name in ("split", "rsplit"):
        separator = given[0] if given and isinstance(given[0], str) else None
        spend(of.count(separator) if separator else len(of) // 2)
    if given and name in _SEARCHES:
        _pay_search(of, given[0])


def _pay_search(text: object, what: object = "", *_: object, **__: object) -> None:
    """Pay for a search from the right, or of a set of characters: it compares every pair."""
    spend(len(str(text)) * (len(str(what)) // CHARACTERS) // CHARACTERS)


def _count_lines(text: str) -> int:
    return 1 + sum(map(text.count, _LINE_ENDS))


def _pay_join(items: object, d: object = "", *_: object, **__: object) -> None:
    """Pay for the text `d` between the items."""
    spend((len(items) if isinstance(items, Sized) else 0) * len(str(d)) // CHARACTERS)


def _pay_replace(text: object, old: object = "", new: object = "", *_: object, **__: object) -> None:
    text, old = str(text), str(old)
    spend((text.count(old) if old else len(text) + 1) * len(str(new)) // CHARACTERS)


# --- filters and tests ----------------------------------------------------------------------------


def _paid_filter(name: str, inner: Filter) -> Filter:
    """Return a filter that pays before it works."""
    attribute_at = _ATTRIBUTE_AT.get(name)

    def pay(value: object, rest: Arguments, kwargs: Keywords) -> object:
        given = [*rest, *kwargs.values()]
        if kwargs:
            _bound_attribute(kwargs.get("attribute"))
        if attribute_at is not None and len(rest) > attribute_at:
            _bound_attribute(rest[attribute_at])
        if name in _SHALLOW_FILTERS:
            weigh(*given)
            return weigh_top(value)
        if isinstance(value, Iterator):
            value = list(paid_items(value))
        weigh(value, *given, is_shown=True)
        for each in given:
            bound(each, _WIDEST, "an argument")
        if name in _GROWING_FILTERS:
            _GROWING_FILTERS[name](value, *rest, **kwargs)
        return value

    return _paid(inner, pay)


def _paid_test(name: str, inner: Filter) -> Filter:
    """Return a test that pays before it works."""

    def pay(value: object, rest: Arguments, kwargs: Keywords) -> object:
        if name in _SHALLOW_TESTS:
            spend(1)
            return value
        weigh(value, *rest, *kwargs.values(), is_shown=name in ("lower", "upper"))
        if name in _NUMBER_TESTS and isinstance(value, str):
            raise TemplateStopped(f"the test '{name}' takes numbers only")
        return value

    return _paid(inner, pay)


def _bound_attribute(name: object) -> None:
    """Stop a template that looks up a long path for every item."""
    if isinstance(name, str):
        bound(1 + name.count(".") + name.count(","), _MOST_PARTS, "the number of parts of an attribute")


def _paid(inner: Filter, pay: Callable[[object, Arguments, Keywords], object]) -> Filter:
    at = 1 if hasattr(inner, "jinja_pass_arg") else 0  # Jinja may pass its context before the value

    @functools.wraps(inner)
    def paid(*args: object, **kwargs: object) -> object:
        value = pay(args[at], args[at + 1 :], kwargs)
        result = inner(*args[:at], value, *args[at + 1 :], **kwargs)
        # Generators that are nested thousands deep overflow the C stack as they are closed.
        return iter([*paid_items(result)]) if isinstance(result, Iterator) else result

    return paid


# These take the arguments of the filter.


def _pay_indent(text: object, width: object = 4, *_: object, **__: object) -> None:
    spend(_count_lines(str(text)) * _length(width) // CHARACTERS)


def _pay_json(
    value: object, _: object = False, indent: object = None, separators: object = None, **__: object
) -> None:
    between = separators if isinstance(separators, (list, tuple)) else ()
    if width := max(map(_length, (indent, *between))):
        spend(_total_depth(value) * width // CHARACTERS)


def _length(width: object) -> int:
    """Return the number of characters that a width stands for: itself, or a text's length."""
    return len(width) if isinstance(width, str) else width if isinstance(width, int) else 0


def _total_depth(value: object, level: int = 1) -> int:
    """Return the sum of the levels of indent of all items."""
    items = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)):
        return level
    return level + sum(_total_depth(item, level + 1) for item in items)


def _pay_format_filter(text: object, *args: object, **kwargs: object) -> None:
    _pay_modulo(str(text), kwargs or args)


def _refuse_start(_: object, __: object = None, start: object = 0, **___: object) -> None:
    if not isinstance(start, (int, float)):  # a list would be copied for every item
        raise TemplateStopped("sum adds numbers only")


_GROWING_FILTERS: dict[str, Callable[..., None]] = {
    "indent": _pay_indent, "tojson": _pay_json, "join": _pay_join, "format": _pay_format_filter,
    "replace": _pay_replace, "sum": _refuse_start, "trim": _pay_search,
}  # fmt: skip


# --- the template's own code ----------------------------------------------------------------------


@pass_context
def _charge(_: object, value: object, price: str | int = "text") -> object:
    """Pay for a value of the template's code, or a number of steps, and return the value."""
    if isinstance(price, int):
        spend(price)
    elif price == "top" or type(value) is str:
        return weigh_top(value)
    else:
        weigh(value, is_shown=price == "text")
    return value


def _instrument(tree: nodes.Template) -> None:
    """Put a price on every loop pass, macro body, comparison, key, concatenation and slice."""
    for loop in list(tree.find_all(nodes.For)):
        loop.body.insert(0, _pass(loop))
        if loop.test is not None:
            loop.test = _charged(loop.test, _price([loop.test]))
    for macro in list(tree.find_all(nodes.Macro)):
        macro.body.insert(0, _pass(macro))
    for block in list(tree.find_all(nodes.CallBlock)):
        block.body.insert(0, _pass(block))
    for compared in list(tree.find_all(nodes.Compare)):
        compared.expr = _charged(compared.expr, "all")
        for operand in compared.ops:
            operand.expr = _charged(operand.expr, "all")
    for joined in list(tree.find_all(nodes.Concat)):
        joined.nodes = [_charged(each, "text") for each in joined.nodes]
    for pair in list(tree.find_all(nodes.Pair)):
        pair.key = _charged(pair.key, "all")
    for item in list(tree.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _charged(item.node, "top")


def _price(body: Sequence[nodes.Node]) -> int:
    """Return the steps of a body, by its size. Bodies inside it pay for themselves."""
    n_nodes = n_characters = 0
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        n_nodes += 1
        if isinstance(node, nodes.TemplateData):
            n_characters += len(node.data)
        if not isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            waiting += node.iter_child_nodes()
    return 1 + n_nodes // _NODES + n_characters // (4 * CHARACTERS)


def _pass(owner: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.ExprStmt:
    """Return a statement that pays for one pass through the body of a loop or macro."""
    return nodes.ExprStmt(_charged(nodes.Const(None), _price(owner.body)), lineno=owner.lineno)


def _charged(node: nodes.Node, price: str | int) -> nodes.Filter:
    return nodes.Filter(node, _CHARGE, [nodes.Const(price)], [], None, None, lineno=node.lineno)
