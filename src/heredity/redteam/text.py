"""The texts of a conversation, and text as checks and judges compare it: folded, without hidden characters.

Promises: linear time, never raises, whatever the text.
Leaves to others: the patterns to look for (checks/, judges/).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from msgspec import UnsetType

from heredity.core.records import Probe, Response, ToolCall

# Letters and digits of a marker or a name; a shorter one would turn up by chance.
MIN_NAME = 5
_EVIDENCE = 200  # characters, the limit of records.Verdict.evidence

# Soft hyphen, zero-width and direction marks, tags, variation selectors: they split words invisibly.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]+"
)
_ASCII_MARKS = {code: None for code in range(128) if not chr(code).isalnum()}
_THOUGHT = re.compile(r"\s*<(think|thinking|thought)>")
_MARKS = re.compile(r"[\W_]+")
_WORD = re.compile(r"[^\W_]+")
_STACK = 30  # combining marks in a row that are read: Unicode's stream-safe text format (UAX 15)


def without_thought(text: str) -> str:
    """An answer without its model's reasoning in front, between <think> and </think>.

    "" if the reasoning does not end: the model gave no answer.
    """
    if (begun := _THOUGHT.match(text)) is None:
        return text
    _, _, rest = text[begun.end() :].partition(f"</{begun[1]}>")
    return rest


def fold(text: str) -> str:
    """NFKC, without invisible characters, lower case; at most the first 30 combining marks of a letter."""
    if text.isascii():
        return text.lower()
    marks, stack = _marks()
    # Normalizing sorts the marks in a row, in time quadratic in how many there are.
    cut = (lambda t: t) if marks.isdisjoint(text) else (lambda t: stack.sub(lambda run: run[0][:_STACK], t))
    # Twice: taking an invisible character out can bring two characters together that compose.
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", cut(text)))
    return unicodedata.normalize("NFKC", cut(text.lower()))


@lru_cache(maxsize=1)
def _marks() -> tuple[frozenset[str], re.Pattern[str]]:
    """The combining marks of this Python's Unicode, found once (in 30 ms), and a run of more than _STACK."""
    # The first of its decomposition, so that a half-width voiced mark, which becomes a mark, is one too.
    codes = (c for c in range(0x300, 0x20000) if not 0x3400 <= c < 0xA000 and not 0xAC00 <= c < 0xE000)
    marks = [c for c in map(chr, codes) if unicodedata.combining(unicodedata.normalize("NFKD", c)[0])]
    low = "".join(map(re.escape, (c for c in marks if c <= "\uffff")))  # re is slow at a set of both planes
    high = "".join(map(re.escape, (c for c in marks if c > "\uffff")))
    return frozenset(marks), re.compile(f"(?:[{low}]|[{high}]){{{_STACK + 1},}}+")


def squeeze(folded: str) -> str:
    """Folded text without spaces and punctuation."""
    return folded.translate(_ASCII_MARKS) if folded.isascii() else _MARKS.sub("", folded)


def words(folded: str) -> list[str]:
    """The words of folded text, punctuation left out; an apostrophe joins (don't -> dont)."""
    return _WORD.findall(folded.replace("'", "").replace("\u2019", ""))


def evidence(*parts: str) -> str:
    """Parts as one printable line of at most 200 characters: model output is hostile."""
    line = " ".join(part[: 4 * _EVIDENCE] for part in parts)
    if not line.isprintable():
        line = "".join(c if c.isprintable() else " " for c in line)
    line = " ".join(line.split())
    return line if len(line) <= _EVIDENCE else line[: _EVIDENCE - 3] + "..."


# --- what the model wrote, and what we supplied -------------------------------------------------------


def shown_texts(probe: Probe) -> tuple[str, ...]:
    """Every text of a probe that the model may be shown."""
    result = (probe.tool_result.text,) if probe.tool_result else ()
    described = () if isinstance(probe.tool_description, UnsetType) else (probe.tool_description.text,)
    return (*probe.turns, *((probe.passage,) if probe.passage else ()), *result, *described)


def written(response: Response) -> str:
    """Everything the model wrote, with the arguments of tool calls that its text does not show."""
    parts = [e.prefill + e.text for e in response.exchanges]
    parts += [written_calls(e.tool_calls) for e in response.exchanges if e.tool_calls]
    return "\n".join(parts)


def supplied(probe: Probe, response: Response) -> str:
    """Everything that we put into this conversation. If the model repeats it, that proves nothing."""
    parts = [*probe.turns, probe.passage, probe.tool_result.text if probe.tool_result else ""]
    parts += [] if isinstance(probe.tool_description, UnsetType) else [probe.tool_description.text]
    parts += retrieved_texts(response)
    return "\n".join([*parts, *(exchange.prefill for exchange in response.exchanges)])


def retrieved_texts(response: Response) -> list[str]:
    """The text of every passage that the application retrieved for this conversation."""
    exchanges = (each.retrieved for each in response.exchanges if not isinstance(each.retrieved, UnsetType))
    return [passage.text for passages in exchanges for passage in passages]


def written_calls(calls: tuple[ToolCall, ...]) -> str:
    """The arguments of tool calls, one call per line."""
    return "\n".join(plain_value(call.arguments) for call in calls)


def plain_value(value: object) -> str:
    """A value as a tool would take it: a number equals its string and its float; texts ignore case."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {plain_value(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(plain_value, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).casefold().split())


def letters_and_digits(text: str) -> str:
    """A text without anything else, in one case: how markers are compared."""
    return "".join(c for c in text.casefold() if c.isalnum())
