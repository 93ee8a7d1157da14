"""Make hostile text harmless: storable as UTF-8 JSON, safe to show on a page or in a terminal, or compiled.

Promises: valid text is stored unchanged. A tool call always fits into a row. A character that hides,
reorders or controls is shown by name and never reaches a reader's terminal. A compiled pattern takes a few
megabytes at most.
Leaves to others: escaping for HTML, CSV and XML (each writer does its own).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from heredity.core.records import Reply, ToolCall

if TYPE_CHECKING:
    import regex

LIMIT = 4000  # characters of one text in a report: enough for any answer, too few to drown a page

# Joiners are needed by emoji and by several scripts; any other format character only hides or reorders.
_ALLOWED = {"\n", "\t", "\u200c", "\u200d"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SUSPECT = re.compile(r"[^\n\t\x20-\x7e]")

# --- to store ---


def clean(reply: Reply) -> Reply:
    """The reply with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD in every text."""
    text, prompt = clean_text(reply.text), clean_text(reply.prompt)
    error = None if reply.error is None else clean_text(reply.error)
    if text is reply.text and prompt is reply.prompt and error is reply.error and not reply.tool_calls:
        return reply
    calls = tuple(map(clean_call, reply.tool_calls))
    return msgspec.structs.replace(reply, text=text, prompt=prompt, error=error, tool_calls=calls)


def clean_text(text: str) -> str:
    """`text` itself if it is valid Unicode, else with U+FFFD for each lone surrogate."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_call(call: ToolCall) -> ToolCall:
    """The call in a form that a row can hold: what JSON cannot hold becomes text."""
    try:
        if msgspec.json.decode(msgspec.json.encode(call), type=ToolCall) == call:
            return call
    except (ValueError, OverflowError, RecursionError, TypeError, msgspec.MsgspecError):
        pass
    arguments = {clean_text(key): _storable(value, 16) for key, value in call.arguments.items()}
    return ToolCall(clean_text(call.name), arguments)


def _storable(value: object, depth: int) -> object:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, dict | list) and depth == 0:
        return "..."
    if isinstance(value, dict):
        return {clean_text(key): _storable(each, depth - 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_storable(each, depth - 1) for each in value]
    is_whole = isinstance(value, int) and -(2**63) <= value < 2**63
    return value if is_whole or (isinstance(value, float) and math.isfinite(value)) else str(value)[:100]


# --- to compile ---

LARGEST_PATTERN = 5_000  # characters, counted repeats written out: 2 MB when compiled
_LONG_TEXT = re.compile(r"(?:\\.|[^][\\(){}.*+?|^$]){1000}", re.DOTALL)  # its search tables take cubic time
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<least>\d+)(?:,\d*)?\}|.", re.DOTALL)
# Comments, verbose patterns, version 1: where their groups and classes end is not read here.
_INTRICATE = re.compile(r"\(\?(?:#|[a-zA-Z0-9-]*[x1])")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_COUNT, _SPLIT_COUNT = re.compile(r"\{\s*(\d[\d\s]*)"), re.compile(r"\{[\d\s,]*#")


@lru_cache(maxsize=512)
def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """Compile a regular expression of a file or a server. Raises ValueError for a malformed or large one.

    "(a{1000}){1000}" is too large: the library `regex` writes counted repeats out as it compiles.
    """
    import regex  # re has no time limit

    check_pattern_size(pattern)
    try:
        return regex.compile(pattern, cache_pattern=False)
    except (regex.error, RecursionError, OverflowError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(str(error)) from None


def check_pattern_size(pattern: str) -> None:
    """Raise ValueError for a pattern that is too large with its counted repeats written out."""
    if len(pattern) > LARGEST_PATTERN or _written_out(pattern) > LARGEST_PATTERN:
        raise ValueError(f"with its counted repeats it has more than {LARGEST_PATTERN:,} characters")
    if _LONG_TEXT.search(pattern):
        raise ValueError("it has 1,000 or more plain characters in a row")


def _written_out(pattern: str) -> int:
    """Return the length of a pattern with the least number of each counted repeat written out, or more."""
    n_before, n_last, outer = 0, 0, list[int]()  # characters before the last item, and of it
    for part in _PART.finditer(pattern):
        text = part[0]
        if part["least"]:
            n_last *= _number(part["least"])
        elif text == "(":
            outer.append(n_before + n_last)
            n_before, n_last = 0, 1
        elif text == ")" and outer:
            n_last += n_before + 1
            n_before = outer.pop()
        else:
            n_before, n_last = n_before + n_last, len(text)
        if n_last > LARGEST_PATTERN or (text[0] == "[" and "[" in _ESCAPED.sub("", text[1:])):
            break
    else:
        if not _INTRICATE.search(pattern):
            return n_before + n_last + sum(outer)
    if _SPLIT_COUNT.search(pattern):
        return LARGEST_PATTERN + 1
    return len(pattern) * math.prod(map(_number, _COUNT.findall(pattern)))


def _number(digits: str) -> int:
    """Return the number of repeats; a long one is cut, and still too large."""
    return max(1, int("".join(digits.split()).lstrip("0")[:9] or "1"))


# --- to show ---


class Shown(NamedTuple):
    """A text as shown, and how many characters were cut from its end."""

    text: str
    n_cut: int


def visible(text: str) -> str:
    """`text` with every character that hides, reorders or controls replaced by a visible name."""
    if text.isascii() and text.isprintable():
        return text
    return _SUSPECT.sub(_name, text.replace("\r\n", "\n"))


def shown(text: str, limit: int = LIMIT) -> Shown:
    """The first `limit` characters of `text`, made visible, and how many were cut."""
    # Cut first: a text of a megabyte costs no more than one of a page.
    return Shown(visible(text[:limit]), max(0, len(text) - limit))


def label(text: str, limit: int = 80) -> str:
    """One short line for a name, an id or a reason: no line break, at most `limit` characters."""
    line = " ".join(visible(text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def plain(text: str, lines: bool = False) -> str:
    """`text` with everything that a terminal would obey made visible; on one line unless `lines`."""
    made = visible(text)
    return made if lines else made.replace("\n", "\u240a").replace("\t", " ")


def shorten(text: str, width: int) -> str:
    """`plain` text on one line, cut to `width` characters with an ellipsis."""
    text = plain(" ".join(text[: 8 * width].split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def plural(n: int, noun: str) -> str:
    """A count with its noun: `1 try`, `25 tries`, `1,204 rows`."""
    if n == 1:
        return f"1 {noun}"
    if noun.endswith("child"):
        return f"{n:,} {noun}ren"
    if noun.endswith("is"):
        return f"{n:,} {noun[:-2]}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{n:,} {noun[:-1]}ies"
    return f"{n:,} {noun}es" if noun.endswith(("ch", "sh", "s", "x")) else f"{n:,} {noun}s"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names in a sentence: `one`, `one and two`, `one, two and three`."""
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _name(match: re.Match[str]) -> str:
    character = match[0]
    if character in _ALLOWED:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures: ESC is shown as one sign
    if code == 0x7F:
        return "\u2421"
    # Selectors above U+E0100 smuggle bytes behind a letter; the sixteen lower ones are part of emoji.
    is_smuggler = 0xE0000 <= code <= 0xE0FFF
    return f"⟨U+{code:04X}⟩" if is_smuggler or unicodedata.category(character) in _HIDDEN else character
