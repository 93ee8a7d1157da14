"""The tool calls in an answer: in the plain format, and as models write them in the formats of others.

One reading serves the conversation, which runs the calls, and the checks, which judge them. So a call that a
check counts is a call that ran, in every answer that this version asked for.

Promises: linear time, never raises. A signature or a description is not a call. Nor is a call that a sentence
quotes, declines or reports.
Leaves to others: the effects of a call (tools.py), and calls that an engine reads in its model's format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from heredity.core.records import ToolCall

_LONGEST = 100_000  # characters in which calls are looked for
_MAX_ARGUMENTS = 400  # characters of arguments in parentheses
_TRIES = 50  # places behind a colon at which an object is read, and attempts that are read
_BEFORE = 160  # characters in front of a call that are read as its sentence
_GAP, _QUOTES = r"[ \t]*+", r"[*`\"']{0,3}"
# Of a line: a list's mark, emphasis, a tag, and a label such as "Action:".
_START = (
    r"^(?:[ \t]|[>*+`\u2022-]|\d{1,3}[.)]|</?tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|functions\."
    r"|(?i:action|tool|function|(?:tool|function)[ _]call)[ \t]*+:)*+"
)
_OBJECT = re.compile(_START + r"(?:(?:CALL|call|Call)[ \t:]*+)?(?=[{\[])", re.MULTILINE)
# Within a line: behind a tag that announces a call, or behind a colon.
_INNER_OBJECT = re.compile(
    r"(?:(?P<tag><(?:tool_call|function_call)>|\[TOOL_CALLS\]|<\|python_tag\|>)\s*+|(?<=\w):[ \t]*+)"
    r"(?=\{\s*+\"|\[\s*+\{)"
)
_IN_PARENTHESES = r"\(\s{0,40}+(?:[A-Za-z_]\w{0,60}[ \t]*+[=:]|[\"'\d])(?:\"[^\"\n]{0,200}\"|[^()]){0,400}+\)"
_ARGUMENT = re.compile(
    r"[\"'`]?([A-Za-z_]\w{0,60})[\"'`]?[ \t]*[=:][ \t]*(\"[^\"\n]*\"|'[^'\n]*'|[^,()\n{}]+)"
)
# The tags and tokens of the families' chat templates. A tag may have a namespace before its name.
_TOKEN = r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>"
_TAG = r"<[^\s<>\"'=]{0,24}?"
_TO_ARGUMENTS = (
    rf"(?:\s|{_TOKEN}|<tool_sep>|\[ARGS\]|```(?:json)?|(?:json|code|commentary)\b|:\d{{1,3}}(?!\d))*+"
)
_BEGINS_CALL = (
    r"(?:<[|\uff5c]tool[_\u2581]call[_\u2581]begin[|\uff5c]>|<start_function_call>|<\|?tool_call>"
    rf"|\[TOOL_CALLS\]|^(?=function))\s*+(?:function(?:{_TOKEN})?+\s*+|call:)?(?:functions\.)?"
)
# Up to its own closing tag, or to another tag of a call where that is missing.
_CALL_TAGS = r"(?:parameter|invoke|function|tool_call|arg_key|arg_value)"
_VALUE = rf"((?:[^<]{{1,400}}+|<(?!/?[^\s<>]{{0,24}}?{_CALL_TAGS}\b)){{0,100}}+)"
_PARAMETER = re.compile(
    rf"\s*+{_TAG}parameter(?:[ \t]+name)?=[\"']?([\w.-]{{1,60}})[\"']?[^<>\n]{{0,80}}>{_VALUE}"
    r"(?:</[^\s<>]{0,24}?parameter>)?"
    rf"|\s*+<arg_key>([^<>\n]{{1,60}})</arg_key>\s*+<arg_value>{_VALUE}(?:</arg_value>)?"
    r"|[{,]\s*+([A-Za-z_]\w{0,60}):(?:<escape>([^<]{0,400})<escape>|<\|\"\|>([^<]{0,400})<\|\"\|>"
    r"|([^,{}<>\n]{1,200}))"
)
_OPENING = re.compile(r"[ \t:(`*\"']{0,12}?(?:\{|\()(?:[ \t]{0,8}\{)?")
_PLACEHOLDER = re.compile(r"<.*|\.{3}|str(?:ing)?|int(?:eger)?|float|number|amount|value")
# What ends a call that has its arguments in parentheses. Other words behind it describe the tool.
_END = re.compile(
    r"[ \t]*[`*\"'\])}>;]*[ \t]*(?:\r?$|[.!?](?:\s|\Z)|#|//|->|=>|<[/|]|,[ \t]*[A-Za-z_]\w*\()", re.MULTILINE
)
_IS_DENIED = re.compile(
    rf"(?:[ \t}}]|```|</?[^<>\n]{{1,40}}>|{_TOKEN}){{0,12}}+"  # what closes the call
    r"[`\"'*]*[ \t]*,?[ \t]*(?:(?:is|was|would be)(?:n't| not| forbidden| against| only| what| something"
    r"| the call| an?)\b|but (?:i|we|it)\b"
    r"|(?:and|which) (?:i|we) (?:can|may|will|must|should)(?:n't| ?not)\b)",
    re.IGNORECASE,
)
# A sentence with one of these in front of a call talks about the call.
_TALKS = re.compile(
    r"\b(?:not|never|cannot|refus\w+|declin\w+|unable|without|instead|rather|would|could|should|might|may|if"
    r"|asks?|asked|asking|wants?|wanted|tells?|told|says?|said|instruct\w*|orders?|ordered"
    r"|requests?|requested|demands?|contains?|mentions?|example|like|format|form|syntax|looks"
    r"|ignor\w+|(?:tool|function|is) (?:called|named)|to (?:use|write|run|send|make)"
    r"|you (?:can|must|need|have))\b|n['\u2019]t\b"
)
_QUOTE_MARKS = ('"', "'", "\u201c", "\u2018")
_AS_ASKED = re.compile(r"\bas (?:you )?(?:asked|requested|ordered|instructed|said|told)\b")
# A line that ends in a colon and has one of these shows the call below it.
_SHOWS = re.compile(
    r"\b(?:example|format|form|syntax|looks?|says?|said|reads|contains?|mentions?|would|not|never|cannot"
    r"|unable|refus\w+|declin\w+)\b|n['\u2019]t\b"
)
_MARKUP = re.compile(r"(?:\s|```\w*|<[^<>\n]{1,40}>)*\Z")  # what may stand between that line and the call
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")
# What a reply of nothing but calls has, line by line, whatever tools there are.
_BARE = 4000  # characters of a reply that are read for it
# In small letters only with an object or a tool's name: "Call the shop and say" is an answer.
_CALL_LINE = re.compile(
    r"[ \t>*+`-]*(?:CALL\s+(?!\d)\w+|(?i:call)\s+[^{}\n]{1,60}\{|(?i:call)\s+\w+_\w+\W*$"
    r"|</?[\w:]{0,24}(?:tool|function)_calls?>|<\uff5ctool\u2581calls?\u2581begin"
    r"|(?:print\()?default_api\.\w+\("
    r"|(?:(?:assistant|commentary)\s+){0,2}to=functions\.\w"
    r"|\{\s*\"name\"\s*:\s*\"\w+\"\s*(?:\}|,\s*\"(?:arguments|parameters|input|args)\"))"
)
_CALL_BLOCK = re.compile(
    r"<[^\s<>\"'=]{0,24}?(?:invoke|function)(?: name)?=[^<>\n]{1,80}>"
    r"[\s\S]{0,4000}?(?:</[^<>\n]{0,24}(?:invoke|function)>|\Z)"
)
_RESULT_LINE = re.compile(
    r"\s*(?:the )?(?:tool )?(?:result|output|response|answer|error)(?: is| was)?\s?:.{0,200}$|\W*$",
    re.IGNORECASE,
)


def parse_tool_calls(text: str, names: Sequence[str]) -> tuple[ToolCall, ...]:
    """Calls of the tools `names`, in order.

    The plain format is `CALL name {"argument": "value"}` on a line. Models also write it in another case, in
    a list, in bold, in a code block, or behind a sentence. They write `name(argument="value")`, over several
    lines or in `print(...)`, JSON with the call's name, and `Action: name` with `Action Input: {...}`. They
    also write tags: `<tool_call>`, `<function=name>`, and `<invoke name="name">` with parameters. Tokens of
    harmony, DeepSeek, GLM, Kimi, Mistral and Gemma are read as well. A tool's name may be in another case, or
    with a hyphen for its underscore.

    A call on a line of its own counts even if its arguments cannot be read (they are {} then): what was
    called matters. Words that follow the name make it prose. Behind other words, a call needs arguments, and
    its sentence must neither quote nor decline nor report it.
    """
    return _calls_in(text[:_LONGEST], tuple(names))


@lru_cache(maxsize=64)  # a reply is read twice, and samples are often alike
def _calls_in(text: str, names: tuple[str, ...]) -> tuple[ToolCall, ...]:
    tools = _tools(names)
    folded = text.casefold()
    if not any(each in folded for each in tools.hints):
        return ()
    calls: dict[tuple[int, int], ToolCall] = {}  # by place: what fits two formats is one call
    for read in (_written_calls, _tagged_calls, _json_calls):
        for at, number, call in read(text, tools):
            calls.setdefault((at, number), call)
    return tuple(calls[at] for at in sorted(calls))


def attempted_call(text: str, names: Sequence[str]) -> str:
    """The words of a call that `parse_tool_calls` does not read, as written; "" for none.

    `CALL name for number 7`, `name: number 7` on a line of its own, a call within a sentence, or JSON that
    ends too early.
    """
    if not names:
        return ""
    text = text[:_LONGEST]
    for match in islice(_tools(tuple(names)).attempt.finditer(text), _TRIES):
        body = match["body"]
        if (body is None or _is_filled(body[1:-1])) and not _is_talk(text, match.start()):
            return match[0].strip()
    return ""


def is_bare_call(body: str) -> bool:
    """Whether a text is nothing but tool calls, of existing or invented tools, and short results."""
    body = _CALL_BLOCK.sub("<tool_call>", body[:_BARE])  # of several lines, as one
    lines = [line for line in body.splitlines() if line.strip()]
    return (
        bool(lines)
        and _CALL_LINE.match(lines[0]) is not None
        and all(_CALL_LINE.match(line) or _RESULT_LINE.match(line) for line in lines)
    )


class _ReadCall(NamedTuple):
    """A call with the place of its arguments, and its number among several at one place."""

    at: int
    number: int
    call: ToolCall


class _ToolNames(NamedTuple):
    """How the names of some tools are found: by any of `hints` first, which is cheap."""

    hints: tuple[str, ...]
    by_key: Mapping[str, str]  # a name as compared -> the name
    call: re.Pattern[str]
    tagged: re.Pattern[str]
    attempt: re.Pattern[str]


@lru_cache(maxsize=256)
def _tools(names: tuple[str, ...]) -> _ToolNames:
    ways = sorted(
        {
            ("(?i:" + "[-_. ]?".join(re.escape(part) for part in re.split(r"[-_. ]", name)) + ")")
            for name in names
        },
        key=len,
        reverse=True,
    )
    one = rf"(?:{'|'.join(ways)})" if ways else r"(?!)"
    hints = tuple(re.split(r"[-_. ]", name.casefold())[0] for name in names)
    return _ToolNames(
        hints, {_key_of(n): n for n in names}, _call_pattern(one), _tagged_pattern(one), _attempt_pattern(one)
    )


def _call_pattern(one: str) -> re.Pattern[str]:
    to_name = rf"{_QUOTES}(?::{_QUOTES}{_GAP}|[ \t]++){_QUOTES}"
    return re.compile(
        rf"{_START}(?:"
        rf"CALL{to_name}(?P<plain>{one})(?![\w-]){_QUOTES}(?={_GAP}(?:[{{(:\[]|\r?$))"
        rf"|(?i:call){to_name}(?P<cased>{one})(?![\w-]){_QUOTES}"
        rf"(?={_GAP}:?{_GAP}(?:\(?{_GAP}\{{|{_IN_PARENTHESES}))"
        rf"|(?:\[{_GAP}|print\(|await |[A-Za-z_]\w{{0,30}} ?= ?)?(?:default_api\.)?"
        rf"(?P<function>{one}){_QUOTES}"
        rf"(?={_GAP}(?:\(?{_GAP}\{{{_GAP}\"|{_IN_PARENTHESES})))"
        rf"|(?:(?<![\w\"'`\u201c\u2018-])CALL|(?<=[.!:] )Call){to_name}(?P<inner>{one})(?![\w-])"
        rf"{_QUOTES}(?={_GAP}\(?{_GAP}\{{)",
        re.MULTILINE,
    )


def _tagged_pattern(one: str) -> re.Pattern[str]:
    return re.compile(
        rf"{_TAG}(?:invoke|function|tool|call)(?:[ \t]+name)?=[\"']?(?P<tag>{one})[\"']?[^<>\n]{{0,80}}>"
        rf"{_TO_ARGUMENTS}"
        rf"|(?:{_TOKEN}(?:assistant|commentary|[ \t])*+){{0,4}}\bto=(?:functions\.)?"
        rf"(?P<recipient>{one})(?![\w.-]){_TO_ARGUMENTS}"
        rf"|{_BEGINS_CALL}(?P<begun>{one})(?![\w-]){_TO_ARGUMENTS}"
        rf"|^[ \t>*-]*+(?i:action)[ \t]*+:{_QUOTES}[ \t]*+{_QUOTES}(?P<action>{one})(?![\w-]){_QUOTES}"
        r"(?:\(\))?\s*+\**+(?i:action[ _]input|input|arguments|parameters)\**+[ \t]*+:[ \t*]*+"
        r"(?=[{\[\"'\d]|\w+[ \t]*[=:])",
        re.MULTILINE,
    )


def _attempt_pattern(one: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?m:{_START}(?i:call|invoke|execute|run)\b[ \t:*`\"']{{1,6}}(?:the )?{one}[^\n]{{0,80}})"
        rf"|(?m:{_START}{one}[ \t*`\"']{{0,3}}(?:\d|(?::|with |for )(?=[^\n]{{0,80}}[\d\"'{{]))[^\n]{{1,80}})"
        rf"|(?m:{_START}{one}\([ \t]*\)[ \t;`]*$)"
        rf"|(?<![\w-]){one}[`*]{{0,3}}(?:\{{|(?P<body>{_IN_PARENTHESES}))[^\n]{{0,80}}"
        rf"|\bCALL[ \t]{one}[^\n]{{0,80}}"
        rf"|(?m:{_START}(?i:action)[ \t]*:[ \t*`]*{one}[^\n]{{0,80}})"
        rf"|[\"'](?:name|tool|tool_name|function)[\"']\s*:\s*[\"']{one}[\"']\s*,\s*"
        r"[\"'](?:arguments|parameters|args|input)[\"'][^\n]{0,80}"
        rf"|\{{\s*[\"']{one}[\"']\s*:\s*\{{[^\n]{{0,80}}"
    )


def _key_of(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.removeprefix("functions.")).casefold()


# --- a name with its arguments behind it ---


def _written_calls(text: str, tools: _ToolNames) -> Iterator[_ReadCall]:
    for match in tools.call.finditer(text):
        written = match["plain"] or match["cased"] or match["function"] or match["inner"]
        opening = _OPENING.match(text, match.end())
        is_exact = match["plain"] is not None
        if opening is None:
            arguments, at, end = {}, match.end(), match.end()
        elif opening[0].endswith("{"):
            at = opening.end() - 1
            value, end = _json_at(text, at)
            arguments = value if isinstance(value, dict) else {}
        else:
            at, end = opening.end(), text.find(")", opening.end(), opening.end() + _MAX_ARGUMENTS)
            body = text[at : max(at, end)]
            arguments = {name: _literal(value.strip()) for name, value in _ARGUMENT.findall(body)}
            if not is_exact and not (_is_filled(body) and _END.match(text, end + 1)):
                continue
        if match["inner"] is not None and (not arguments or _is_talk(text, match.start())):
            continue
        if not (_IS_DENIED.match(text, end) or _is_shown(text, match.start())):
            yield _ReadCall(at, 0, ToolCall(tools.by_key[_key_of(written)], arguments))


def _is_filled(body: str) -> bool:
    """Whether arguments in parentheses have values, as in a call, and no descriptions, as in a signature."""
    pairs = _ARGUMENT.findall(body)
    if not pairs:
        return body.strip()[:1] in ("'", '"') or body.strip()[:1].isdigit()
    return any(_is_value(name, value.strip()) for name, value in pairs)


def _is_value(name: str, written: str) -> bool:
    word = written.strip("\"'").strip().casefold()
    if not word or word == name.casefold() or _PLACEHOLDER.fullmatch(word):
        return False
    return written[0] in "\"'[" or any(map(str.isdigit, word)) or word in ("true", "false", "null", "none")


def _is_talk(text: str, at: int) -> bool:
    """Whether a call at a place is quoted, or the words before it in its sentence talk about it."""
    before = text[max(0, at - _BEFORE) : at]
    line = before.rpartition("\n")[2]
    if line.strip() in _QUOTE_MARKS:
        return False  # the line is nothing but the quoted call
    if line.count('"') % 2 or line.count("`") % 2 or line.count("\u201c") > line.count("\u201d"):
        return True
    sentence = _SENTENCE_END.split(line)[-1].casefold()
    return _is_shown(text, at) or _TALKS.search(_AS_ASKED.sub(" ", sentence)) is not None


def _is_shown(text: str, at: int) -> bool:
    """Whether the line above a place ends in a colon, and shows or denies what is at the place."""
    before = text[max(0, at - _BEFORE) : at]
    above = _MARKUP.sub("", before)
    if not above.endswith(":") or "\n" not in before[len(above) :]:
        return False
    return _SHOWS.search(_AS_ASKED.sub(" ", _SENTENCE_END.split(above)[-1].casefold())) is not None


def _literal(written: str) -> object:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written.strip("\"'")


# --- tags and JSON ---


_WRAPPERS = ("tool_calls", "tool_call", "function_call")
_NAMES = ("name", "tool", "tool_name", "function", "recipient_name")
_GIVEN = ("arguments", "parameters", "args", "input", "action_input")
_DENIAL = re.compile(
    r"\b(?:denied|refused|rejected|declined|forbidden|not (?:allowed|permitted|approved|called))\b"
)


def _tagged_calls(text: str, tools: _ToolNames) -> Iterator[_ReadCall]:
    """`Action: name` with `Action Input: {...}`, and the calls in the tags and tokens of chat templates."""
    for match in tools.tagged.finditer(text):
        at, written = match.end(), match[match.lastgroup or 0]
        arguments, end = _arguments_at(text, at)
        is_open = match["action"] is not None or text[at : at + 1] in ("", "{", "<")
        if not (arguments or is_open) or _is_talk(text, match.start()):
            continue
        if not _IS_DENIED.match(text, end):
            yield _ReadCall(at, 0, ToolCall(tools.by_key[_key_of(written)], arguments))


def _arguments_at(text: str, at: int) -> tuple[dict[str, object], int]:
    """The arguments at a place, as JSON or as parameters in tags, and their end; {} without any."""
    given, end = _json_at(text, at) if text.startswith("{", at) else (None, at)
    if isinstance(given, dict):
        return given, end
    arguments: dict[str, object] = {}
    while (parameter := _PARAMETER.match(text, at)) is not None:
        name, value = (group for group in parameter.groups() if group is not None)
        arguments[name], at = value.strip(), parameter.end()
    return arguments, at


def _json_calls(text: str, tools: _ToolNames) -> Iterator[_ReadCall]:
    """Calls as JSON objects: {"name": ..., "arguments": {...}}, by one of several names of these keys."""
    for match in _OBJECT.finditer(text):
        if not _is_shown(text, match.start()):
            yield from _calls_at(text, match.end(), tools)
    for match in islice(_INNER_OBJECT.finditer(text), _TRIES):
        if not _is_talk(text, match.start()):
            calls = list(_calls_at(text, match.end(), tools))
            yield from (each for each in calls if match["tag"] or each.call.arguments)


def _calls_at(text: str, at: int, tools: _ToolNames) -> Iterator[_ReadCall]:
    value, end = _json_at(text, at)
    if isinstance(value, dict):
        value = next((value[key] for key in _WRAPPERS if key in value), value)
    if _IS_DENIED.match(text, end):
        return
    for number, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, dict) and (call := _call_of(item, tools)) is not None:
            yield _ReadCall(at, number, call)


def _call_of(item: Mapping[str, object], tools: _ToolNames) -> ToolCall | None:
    inner = item.get("function")
    item = inner if isinstance(inner, dict) else item
    given_at = next((key for key in _GIVEN if key in item), "")
    if not given_at and any(
        (value is False or (isinstance(value, str) and _DENIAL.search(value.casefold()) is not None))
        for value in item.values()
    ):
        return None
    # An action beside anything else may be a record.
    is_action = given_at == "action_input" or (given_at != "" and len(item) == 2)
    names = (*_NAMES, "action") if is_action else _NAMES
    name = next((item[key] for key in names if key in item), None)
    if not isinstance(name, str) or _key_of(name) not in tools.by_key:
        return None
    given: object = item.get(given_at, {})
    given = _literal(given) if isinstance(given, str) else given
    if "description" in item or (isinstance(given, dict) and "properties" in given):
        return None  # a tool's description as JSON
    return ToolCall(tools.by_key[_key_of(name)], given if isinstance(given, dict) else {})


def _json_at(text: str, at: int) -> tuple[object, int]:
    """The JSON value at a place and its end; (None, at) without one."""
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at
