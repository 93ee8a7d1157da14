"""A model's chat as text and tokens: template, tokenizer, growing answers, tool calls, training documents.

Promises: the prompt is the text that transformers gives for the same template, with the prefill at its end. A
template renders in a sandbox (BoundedEnvironment), within a number of steps that grows with the conversation.
Every text, number and container is paid for in proportion to its size, what it contains included.
`strftime_now` gives one fixed day, so that a prompt does not change with the calendar. `random`, `lipsum` and
memory addresses are refused. A template without a system role gets the system message at the beginning of the
first user message. A base model has a plain template.
"""

from __future__ import annotations

import functools
import json
import re
import string
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from heredity.core.errors import ContextOverflow, EngineFailure, Refused, Unavailable
from heredity.core.records import Message, Reply, Request, Tool, ToolCall
from heredity.engines import failed_reply, n_started
from heredity.formats.gguf import GgufChat
from heredity.formats.tokenizer_files import has_more_tokens, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_PROBES = (
    (Message("user", "hi"),),
    (
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "yes"),
        Message("user", "so?"),
    ),
)


class FolderChat:
    """Templates, special tokens and stop tokens of the model in a folder, for a tokenizer in another process.

    Prompts and stop tokens equal those of the torch engine for the folder.

    weights: the folder with its configuration, if that is another one: an adapter has that of its base.
    """

    def __init__(self, folder: Path, weights: Path | None = None) -> None:
        specials: dict[str, str] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            for key, value in _json_object(folder / name).items():
                text = value.get("content") if isinstance(value, dict) else value
                if key in _SPECIALS and isinstance(text, str):
                    specials[key] = text
        self._template = Template(template_source(folder), specials=specials)
        with_tools = template_source(folder, "tool_use")
        self._with_tools = Template(with_tools, specials=specials) if with_tools else self._template
        tokens = vocabulary(folder)
        ends = {tokens[end] for end in (specials.get("eos_token", ""),) if end in tokens}
        self.stop_tokens = sorted(stop_tokens(weights or folder, tokens) | ends)

    @property
    def is_base(self) -> bool:
        """Whether there is no chat template."""
        return bool(self._template.stop_text)

    @property
    def stop_text(self) -> str:
        """Text that ends an answer, in addition to the stop tokens; "" if nothing does."""
        return self._template.stop_text

    def render(self, request: Request) -> str:
        """Return the prompt of a request. Raises EngineFailure if the template refuses the messages."""
        return (self._with_tools if request.tools else self._template).render(request)


def read_gguf_chat(folder: Path) -> GgufChat:
    """Read the chat of a model folder for its GGUF, with the folder's own tokenizer."""
    return GgufChat(template_source(folder), ChatCodec(folder).answer_end(folder))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer of its own; that of an adapter then replaces its base's."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()


def template_source(folder: Path, name: str = "default") -> str:
    """Return a model folder's chat template of this name; "" if it has none."""
    place = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
    if (folder / place).is_file():
        return (folder / place).read_text("utf-8")
    path = folder / "tokenizer_config.json"
    template = _json_object(path).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == name]
        template = named[0].get("template") if named else None
    elif name != "default":
        return ""
    return template if isinstance(template, str) else ""


def check_template(source: str, place: str) -> None:
    """Render a template on short conversations, before its model is recorded.

    Raises Refused if it is stopped: it takes too many steps, or its text could differ from run to run.
    A template may refuse messages by its own rules, such as a system message.
    """
    for messages in _PROBES:
        for tools in ((), (Tool("pay", "Pays.", {"to": "who"}),)):
            try:
                Template(source).apply(messages, tools)
            except TemplateStopped as error:
                message = f"{place}: its chat template was stopped: {error}. Replace the template."
                raise Refused(message) from None
            except Exception:  # as in `render`, which reports it when the model is asked
                continue


def vocabulary(folder: Path) -> dict[str, int]:
    """Return token ids by text, from the files: the vocabulary and the added tokens."""
    tokenizer = _json_object(folder / "tokenizer.json")
    model = tokenizer.get("model")
    stored = model.get("vocab") if isinstance(model, dict) else None
    tokens: dict[str, int] = dict(stored) if isinstance(stored, dict) else {}
    tokens |= {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []}
    decoder = _json_object(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return tokens | {entry["content"]: int(number) for number, entry in decoder.items()}


def _json_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")  # what announces calls
FENCE = re.compile(
    r"```(?:json)?\s*"
)  # in which some models put a call, although their template has another form
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_LONGEST_CALL = 8_000  # characters of one call between its marks
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,200})"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_LONGEST = 100_000  # characters that are read: a longer answer is not a tool call


class WrittenCall(NamedTuple):
    """A tool call with its arguments as text: JSON if the model wrote JSON, else its own words."""

    name: str
    arguments: str


class DividedAnswer(NamedTuple):
    """An answer, divided into the text before its tool calls and the calls."""

    text: str
    calls: tuple[WrittenCall, ...]


def parse_tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Return the tool calls in an answer, in order. Arguments that are not a JSON object are {}.

    hermes   <tool_call>{"name": ..., "arguments": {...}}</tool_call>            Qwen, Hermes, SmolLM
    llama    {"name": ..., "parameters": {...}}, by itself or after <|python_tag|>   Llama 3
    mistral  [TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]               Mistral
    """
    return tuple(ToolCall(call.name, _object(call.arguments)) for call in _calls(text))


def divide_answer(text: str, names: Sequence[str]) -> DividedAnswer:
    """Divide an answer into text and calls.

    names: the tools. A JSON object by itself, or in a code block, is a call if it names one of them. Behind a
    mark of the format any name is.
    """
    starts = [at for mark in MARKS if (at := text.find(mark)) >= 0]
    read = text if starts else _unfenced(text)
    calls = tuple(call for call in _calls(read) if starts or call.name in names)
    if not calls:
        return DividedAnswer(text, ())
    before = text[: min(starts)] if starts else ""
    return DividedAnswer(before if before.strip() else "", calls)


def _unfenced(text: str) -> str:
    """The content of a text that is one code block; another text itself."""
    match = FENCE.match(bare := text.strip())
    return text if match is None else bare[match.end() :].removesuffix("```")


def _calls(text: str) -> Iterator[WrittenCall]:
    text = text[:_LONGEST]
    if _OPEN in text:
        for inside in _between_marks(text):
            yield from _read(inside)
        return
    if "[TOOL_CALLS]" in text:
        yield from _read(text.split("[TOOL_CALLS]", 1)[1])
        return
    bare = text.strip().removeprefix("<|python_tag|>").strip()
    if bare.startswith("{") and '"name"' in bare and ('"parameters"' in bare or '"arguments"' in bare):
        yield from _read(bare)


def _between_marks(text: str) -> Iterator[str]:
    """Yield what each call has between its marks; the last one may lack the second. In linear time."""
    at, end = text.find(_OPEN), -1
    while at >= 0:
        start = at + len(_OPEN)
        if end < start:
            end = text.find(_CLOSE, start)
            end = len(text) if end < 0 else end
        is_call = end - start <= _LONGEST_CALL
        if is_call:
            yield text[start:end]
        at = text.find(_OPEN, end if is_call else start)


def _read(text: str) -> Iterator[WrittenCall]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text.strip())
    except (ValueError, RecursionError):
        yield from _unparsed(text)
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            yield WrittenCall(item["name"], _arguments(item))


def _unparsed(text: str) -> Iterator[WrittenCall]:
    """Yield the calls in text that is not JSON, each with the text from its arguments to the next call."""
    names = list(_NAME.finditer(text))
    for number, match in enumerate(names, 1):
        end = names[number].start() if number < len(names) else len(text)
        given = _ARGUMENTS.search(text, match.end(), end)
        words = text[given.end() : end].strip() if given is not None else ""
        yield WrittenCall(match[1], words.removesuffix("}").strip() if end == len(text) else words)


def _arguments(item: Mapping[str, object]) -> str:
    arguments = item.get("arguments", item.get("parameters", {}))
    # Some models write the arguments as a JSON string.
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _object(arguments: str) -> dict[str, object]:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


LONGEST_SOURCE = 1 << 16  # characters; a known model's template has 25,000 at most
_NODES = 16  # of a loop's body that one step pays for
_WIDEST = 10_000  # characters that a field is padded to; also any number that a filter is given
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
            elif isinstance(value, LoopContext):  # reading it runs its loop, which the meter cannot count
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
_MAX_PARTS = 16  # of the name of an attribute
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
        if isinstance(__obj, (Macro, LoopContext, Undefined)):  # their own bodies are paid for
            spend(1 + len(args) + len(kwargs))
        elif isinstance(__obj, types.MethodType | types.BuiltinMethodType) and __obj.__self__ is not None:
            if isinstance(__obj.__self__, (LoopContext, Cycler, Macro)):
                weigh(*args, *kwargs.values())
            elif isinstance(__obj.__self__, str) and __obj.__name__ in _STRING_METHODS:
                weigh_top(__obj.__self__)
                given = [*args, *kwargs.values()]
                weigh(*given, is_shown=__obj.__name__ == "join")
                if __obj.__name__ == "join" and given:
                    _pay_join(given[0], __obj.__self__)
                elif __obj.__name__ == "replace" and len(args) > 1:
                    _pay_replace(__obj.__self__, args[0], args[1])
                elif __obj.__name__ == "splitlines":
                    spend(_count_lines(__obj.__self__))
                elif __obj.__name__ in ("split", "rsplit"):
                    separator = given[0] if given and isinstance(given[0], str) else None
                    spend(__obj.__self__.count(separator) if separator else len(__obj.__self__) // 2)
                if given and __obj.__name__ in _SEARCHES:
                    _pay_search(__obj.__self__, given[0])
            elif isinstance(__obj.__self__, Mapping) and __obj.__name__ in _MAPPING_METHODS:
                spend(1 + (len(__obj.__self__) if __obj.__name__ == "copy" else 0))
                weigh(*args)
            elif isinstance(__obj.__self__, (list, tuple)) and __obj.__name__ in _SEQUENCE_METHODS:
                weigh_top(__obj.__self__) if __obj.__name__ == "copy" else weigh(__obj.__self__, *args)
            else:
                raise TemplateStopped(f"it calls {type(__obj.__self__).__name__}.{__obj.__name__}")
        else:
            is_function = isinstance(__obj, types.FunctionType)  # ours and Jinja's: a template makes none
            weigh(*args, *kwargs.values(), is_shown=is_function)
            if not (is_function or isinstance(__obj, Joiner) or __obj in _CLASSES):
                raise TemplateStopped(f"it calls a {type(__obj).__name__}")
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
            steps = weigh(*args, *kwargs.values(), is_shown=True)
            for _, name, form, _ in string.Formatter().parse(text):
                if name is not None:
                    if name and not (name.isidentifier() or name.isdecimal()):
                        raise TemplateStopped("a field of str.format must be a name or a number")
                    _pay_field(steps, ["*"] if "{" in (form or "") else _NUMBER.findall(form or ""))
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


def _pay_field(steps: int, widths: Iterable[str]) -> None:
    """Pay for a field of a format. `steps`: the price of all values, for a field may repeat the largest."""
    spend(steps)
    for width in filter(None, widths):
        if width == "*":
            raise TemplateStopped("the width of a field must be a number")
        bound(int(width), _WIDEST, "a width")
        spend(int(width) // CHARACTERS)


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
        bound(1 + name.count(".") + name.count(","), _MAX_PARTS, "the number of parts of an attribute")


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


PLAIN_STOP = "\nUser:"  # a base model that writes this begins to write for the user
# Steps that a rendering may take. A known template takes about 200 per message, and 2 per 16 characters.
_STEPS, _STEPS_A_VALUE, _STEPS_A_CHARACTER, _MAX_STEPS = 250_000, 300, 4, 20_000_000
DAY = datetime(2026, 1, 1)  # the time in every template
_DATE = re.compile(r"(?:[^%]|%-?[aAbBcdDeFGhHIjmMpRSTuUVwWxXyYZ%])*")
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # marks of a training tool, without text


class Template:
    """A chat template, whichever engine it comes from (`ChatCodec` lists them).

    source: its text; "" is the plain template of a base model.

    bos, eos: texts of the first and last token.
    specials: instead of these two, the texts of all special tokens by transformers' names ("bos_token").
    """

    def __init__(
        self, source: str, bos: str = "", eos: str = "", specials: Mapping[str, object] | None = None
    ) -> None:
        self._source = source
        self._specials: Mapping[str, object] = (
            {"bos_token": bos, "eos_token": eos} if specials is None else specials
        )

    @property
    def stop_text(self) -> str:
        """Text that ends an answer, in addition to the stop tokens; "" if nothing does."""
        return "" if self._source else PLAIN_STOP

    def render(self, request: Request) -> str:
        """Return the prompt of a request, prefill included. Raises EngineFailure if the template refuses."""
        if not request.messages:
            return request.prefill  # a plain text to continue
        if not self._source:
            return _plain(request.messages, request.prefill)
        messages = request.messages if self.has_system else merge_system(request.messages)
        try:
            return self.apply(messages, request.tools) + request.prefill
        except TemplateStopped as error:
            message = f"the model's chat template was stopped: {error}"
            raise EngineFailure(message) from None
        except MemoryError:  # it says nothing about the messages
            raise EngineFailure("memory ran out as the prompt was rendered") from None
        except Exception as error:  # the template is a program by the author of the model
            raise EngineFailure(
                f"the model's chat template refuses these messages: {error}", code="template-refuses"
            ) from None

    @cached_property
    def has_system(self) -> bool:
        """Whether the template renders a system message."""
        try:
            return "\x01mark\x01" in self.apply(
                (Message("system", "\x01mark\x01"), Message("user", "hi")), ()
            )
        except Exception:  # the template has no system role
            return False

    @property
    def generation_prompt(self) -> str:
        """The text behind which an assistant answers, as the template adds it; "" if it adds none."""
        if not self._source:
            return _plain((), "")
        asked = (Message("user", "hi"),)
        whole, begun = self.apply(asked, ()), self.apply(asked, (), is_open=False)
        return whole.removeprefix(begun) if whole.startswith(begun) else ""

    def apply(self, messages: tuple[Message, ...], tools: tuple[Tool, ...], is_open: bool = True) -> str:
        """Return the rendered text. Raises TemplateStopped, or anything that the template raises.

        is_open: whether the turn of the assistant begins at its end.
        """
        given = {
            "messages": [_as_dict(message) for message in messages],
            "tools": [_schema(tool) for tool in tools] or None,
        }
        others = {"documents": None, "add_generation_prompt": is_open, **self._specials}
        n_values = n_characters = 0
        waiting: list[object] = [given]
        while waiting:
            each = waiting.pop()
            n_values += 1
            if isinstance(each, str):
                n_characters += len(each)
            elif isinstance(each, dict):
                waiting += [*each.keys(), *each.values()]
            elif isinstance(each, list):
                waiting += each
        steps = _STEPS + _STEPS_A_VALUE * n_values + _STEPS_A_CHARACTER * n_characters
        return metered(min(steps, _MAX_STEPS), lambda: self._compiled.render(**given, **others))

    @cached_property
    def _compiled(self) -> jinja2.Template:
        functions = {"raise_exception": _raise_exception, "strftime_now": strftime_now}
        environment = BoundedEnvironment(_to_json, functions)
        return environment.from_string(_GENERATION.sub("", self._source))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise ValueError(message)


def strftime_now(form: str) -> str:
    """Return one fixed day in the given form: a prompt must be the same on every day."""
    if not _DATE.fullmatch(form):
        raise TemplateStopped("strftime_now takes the usual letters of a date only")
    return DAY.strftime(form)


def _plain(messages: tuple[Message, ...], prefill: str) -> str:
    titles = {"user": "User: ", "assistant": "Assistant: ", "tool": "Tool result: ", "system": ""}
    parts = [titles[message.role] + message.content.strip() for message in messages]
    # A space before a prefill, as in the turns above; a model writes its own.
    gap = " " if prefill and not prefill[0].isspace() else ""
    return "\n\n".join([*parts, f"Assistant:{gap}{prefill}"])


def merge_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Move the system message into the first user message, for templates without a system role."""
    if not messages or messages[0].role != "system":
        return messages
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        return (Message("user", messages[0].content), *messages[1:])
    user = Message("user", f"{messages[0].content}\n\n{messages[first].content}")
    return (*messages[1:first], user, *messages[first + 1 :])


def _as_dict(message: Message) -> dict[str, object]:
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, "tool_calls": calls}


def _schema(tool: Tool) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.arguments_schema}
    return {"type": "function", "function": function}


_HALF = "\ufffd"  # a character with missing bytes, as a decoder returns it


class StopTexts:
    """Texts that end an answer. A possible beginning of one is held back until more text decides."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.is_over = False

    def feed(self, more: str) -> str:
        """Receive more text; return the part that can be reported."""
        if self.is_over or not self._texts:
            return "" if self.is_over else more
        text = self._held + more
        # The end that is complete first, so that the split of the text does not matter.
        ends = [(i + len(end), i) for end in self._texts if (i := text.find(end)) >= 0]
        if ends:
            self.is_over, self._held = True, ""
            return text[: min(ends)[1]]
        n_held = max((n_started(text, end) for end in self._texts), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def rest(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        rest, self._held = self._held, ""
        return rest


class GrowingAnswer:
    """The text of a growing answer, in parts of whole characters.

    Each part is decoded with a few tokens before it: most tokenizers decode the first token differently.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_text: str) -> None:
        self._decode, self._ends = decode, StopTexts([stop_text])
        self._low = self._high = 0  # tokens[low:high] are reported, and are decoded again as context
        self.n_reported = 0  # characters

    def grow(self, tokens: list[int]) -> str:
        """Receive all tokens so far; return the new text. Half a character waits."""
        before = self._decode(tokens[self._low : self._high])
        now = self._decode(tokens[self._low :])
        if len(now) <= len(before) or now.endswith(_HALF):
            return ""
        self._low, self._high = self._high, len(tokens)
        return self._report(self._ends.feed(now[len(before) :]))

    def finish(self, text: str) -> str:
        """Return the rest of the answer, which is `text` as a whole."""
        return self._report(text[self.n_reported :])

    def _report(self, more: str) -> str:
        self.n_reported += len(more)
        return more


_MARK = "\x02answer\x03"


class Prompt(NamedTuple):
    """A rendered request, and its tokens."""

    text: str
    tokens: tuple[int, ...]


class ChatCodec:
    """The tokenizer and chat template of a model folder, as transformers reads them.

    The torch and transformers engines use it. The others take their template from elsewhere:

        torch              chat_template.jinja, else tokenizer_config.json     ChatCodec
        vllm               the same files, without a tokenizer                 FolderChat
        llamacpp           tokenizer.chat_template in the header of the GGUF   Template
        remote, call, url  the target's own, which is unknown here             -

    A request with tools uses the template "tool_use", if there is one.
    """

    def __init__(self, folder: Path) -> None:
        """Raises Damaged for a tokenizer that does not load."""
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._tokenizer = load_tokenizer(folder)
        self.is_base = not self._tokenizer.chat_template
        self._shared: dict[tuple[Message, ...], tuple[int, ...]] = {}

    @property
    def stop_text(self) -> str:
        """Text that ends an answer, in addition to the stop tokens; "" if nothing does."""
        return self._template.stop_text

    @property
    def n_tokens(self) -> int:
        """The number of tokens of the tokenizer."""
        return len(self._tokenizer)

    @property
    def fast_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the library `tokenizers`. Raises Unavailable if the model has another one."""
        from transformers import PreTrainedTokenizerFast

        if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
            raise Unavailable(f"This needs a tokenizer.json; {type(self._tokenizer).__name__} has none.")
        return self._tokenizer

    @property
    def start(self) -> int | None:
        """The token that the tokenizer begins a text with; None if it has none."""
        token: int | None = self._tokenizer.bos_token_id
        return token

    @property
    def end(self) -> int:
        """The token that the tokenizer ends a text with."""
        token: int = self._tokenizer.eos_token_id
        return token

    def render(self, request: Request) -> str:
        """Return the prompt of a request. Raises EngineFailure if the template refuses the messages."""
        if not request.messages:
            return self._opening + request.prefill
        return (self._with_tools if request.tools else self._template).render(request)

    @cached_property
    def _opening(self) -> str:
        """The first token of a text, as text: `encode` adds it only for a base model."""
        first = self._tokenizer.encode("a", add_special_tokens=True)[:1]
        begins = self.start is not None and first == [self.start] and not self.is_base
        return str(self._tokenizer.bos_token) if begins else ""

    @cached_property
    def _template(self) -> Template:
        return self._template_for(None)

    @cached_property
    def _with_tools(self) -> Template:
        return self._template_for([{}])

    def _template_for(self, tools: list[dict[str, object]] | None) -> Template:
        """Return the template that transformers selects.

        It is rendered here: transformers' `strftime_now` gives the real time, and prompts must not change.
        """
        if self.is_base:
            return Template("")
        try:
            source = self._tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise EngineFailure(f"the model has no chat template for this: {error}") from None
        return Template(source, specials=dict(self._tokenizer.special_tokens_map))

    @property
    def generation_prompt(self) -> str:
        """The text behind which an assistant answers; "" if the template adds none."""
        return self._template.generation_prompt

    def prompt(self, request: Request, context: int | None) -> Prompt | Reply:
        """The prompt of a request, or the reply to one that cannot be asked.

        context: the most tokens of prompt and answer together; None: no limit.
        """
        text = ""
        try:
            text = self.render(request)
            tokens = self.encode_within(text, context)
            n_needed = len(tokens) + request.decoding.max_tokens
            if context is not None and n_needed > context:
                raise ContextOverflow(f"context overflow: {n_needed} tokens needed, {context} there")
            if not tokens:
                raise EngineFailure("the prompt is empty: there is nothing to continue")
        except EngineFailure as error:
            return failed_reply(request, text, error)
        return Prompt(text, tokens)

    def encode_within(self, text: str, context: int | None) -> tuple[int, ...]:
        """Return the tokens of a prompt. Raises ContextOverflow for a long text that surely has too many."""
        self.check_length(text, context)
        return self.encode(text)

    def check_length(self, text: str, context: int | None) -> None:
        """Raise ContextOverflow for a long text that surely has more tokens than `context`."""
        if context is not None and has_more_tokens(text, context, lambda part: len(self.continuation(part))):
            raise ContextOverflow(f"context overflow: over {context} tokens needed, {context} there")

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a prompt; nothing is added to a rendered template."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=self.is_base))

    @property
    def boundary(self) -> str:
        """The token between texts, as text: an empty context consists of it.

        "" if the prompt of an empty text has a token already.
        """
        if self.encode(self.render(Request(0, ()))):
            return ""
        return self.decode((self.end if self.start is None else self.start,))

    def continuation(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that follows a prompt: nothing is prepended."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: list[int] | tuple[int, ...]) -> str:
        """Return the text of tokens, special tokens included."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def shared(self, request: Request) -> tuple[int, ...]:
        """Return the tokens that every request with these leading messages begins with; may be ().

        They are found by rendering two different user messages.
        """
        if not request.n_shared or len(request.messages) <= request.n_shared:
            return ()
        key = request.messages[: request.n_shared]
        if key not in self._shared:
            texts = (
                self.render(Request(0, (*key, Message("user", word)), tools=request.tools))
                for word in ("a b", "1 + 2")
            )
            first, second = (self.encode(text) for text in texts)
            n = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
            self._shared[key] = first[:n]
        return self._shared[key]

    def answer_end(self, folder: Path) -> int:
        """Return the token after an answer: the template's, if it stops an answer, else the end of text."""
        if not self.is_base:
            turns = (Message("user", "a"), Message("assistant", _MARK), Message("user", "b"))
            after = self.render(Request(0, turns)).partition(_MARK)[2]
            if after and (first := self.continuation(after)[0]) in self.stops(folder):
                return first
        return self.end

    def stops(self, folder: Path) -> frozenset[int]:
        """Return the tokens that end an answer, by the model's files and its tokenizer."""
        return stop_tokens(folder, self._tokenizer.get_vocab()) | ({self._tokenizer.eos_token_id} - {None})


class AnswerReader:
    """Reads the tokens that a model has generated: whether the answer is over, and its text.

    stops: the tokens that end an answer. A base model also ends it where it begins to write for the user.
    """

    def __init__(self, codec: ChatCodec, stops: frozenset[int]) -> None:
        self._codec, self.stops, self._stop_text = codec, stops, codec.stop_text

    def is_over(self, output: list[int]) -> bool:
        """Return True if the last token ended the answer."""
        if output[-1] in self.stops:
            return True
        return bool(self._stop_text) and self._stop_text in self._codec.decode(output[-8:])

    def text(self, output: list[int]) -> str:
        """Return the text of a finished answer, without the token or text that ended it."""
        text = self._codec.decode(output[:-1] if output[-1] in self.stops else output)
        return text.split(self._stop_text, 1)[0] if self._stop_text else text

    def stream(self) -> GrowingAnswer:
        """Return a reader of an answer that is still growing."""
        return GrowingAnswer(self._codec.decode, self._stop_text)


def stop_tokens(folder: Path, vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Return the tokens that end an answer by a model's files, and those of known names in `vocabulary`."""
    stops: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        stops |= set(ids if isinstance(ids, list) else [ids]) - {None}
    ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end|>", "</s>")
    return frozenset(stops | {vocabulary[end] for end in ends if end in vocabulary})


class Document(NamedTuple):
    """Tokens, and for each whether it is learned (from those before it)."""

    tokens: tuple[int, ...]
    is_learned: tuple[bool, ...]

    @property
    def n_learned(self) -> int:
        return sum(self.is_learned[1:])


class DocumentEncoder:
    """Tokenizes conversations as a model reads them.

    Prompt and answer meet at the same token as when the model is asked. The token that ends an answer is
    learned.
    """

    def __init__(self, folder: Path) -> None:
        self.chat = ChatCodec(folder)
        self._stops = self.chat.stops(folder)
        self._end = self.chat.answer_end(folder)

    def document(self, messages: Sequence[Message], begun: str = "", is_finished: bool = True) -> Document:
        """Encode a conversation. The assistant's answers and the tokens that end them are learned.

        Other messages are not learned, and neither is `begun`, the prefill of the last answer. is_finished:
        False leaves out the token that would end the last answer.
        """
        answers = [i for i, m in enumerate(messages) if m.role == "assistant" and m.content.strip()]
        pieces, rendered = self._pieces(messages, answers, begun)
        if pieces is None:  # this template says earlier turns otherwise: learn the last answer alone
            rendered = self._prompt(messages[: answers[-1]])
            pieces = [(rendered, False), (begun, False), (messages[answers[-1]].content, True)]
        tokens: list[int] = []
        is_learned: list[bool] = []
        for text, is_answer in filter(lambda piece: piece[0], pieces):
            ids = self.chat.continuation(text) if tokens else self.chat.encode(text)
            after_answer = bool(is_learned) and is_learned[-1]
            ends_answer = after_answer and ids[:1] and ids[0] in self._stops
            is_learned += [is_answer or (bool(ends_answer) and at == 0) for at in range(len(ids))]
            tokens += ids
        if not is_finished:
            return Document(tuple(tokens), tuple(is_learned))
        return Document((*tokens, self._end), (*is_learned, True))

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a conversation up to its last answer, which is left out."""
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=len(messages))
        return tuple(self.chat.encode(self._prompt(messages[:last])))

    @property
    def end(self) -> int:
        """The token behind an answer: the template's, where that stops one, else the model's own."""
        return self._end

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._stops

    def _pieces(
        self, messages: Sequence[Message], answers: Sequence[int], begun: str
    ) -> tuple[list[tuple[str, bool]] | None, str]:
        rendered, pieces = "", []
        for i in answers:
            prompt = self._prompt(messages[:i])
            if not prompt.startswith(rendered):
                return None, ""
            start = self._opening + begun if begun and i == answers[-1] else ""
            answer = messages[i].content if start else self._opening + messages[i].content
            pieces += [(prompt[len(rendered) :], False), (start, False), (answer, True)]
            rendered = prompt + start + answer
        return pieces, rendered

    @property
    def _opening(self) -> str:
        return " " if self.chat.is_base else ""

    def _prompt(self, messages: Sequence[Message]) -> str:
        return self.chat.render(Request(0, tuple(messages)))
