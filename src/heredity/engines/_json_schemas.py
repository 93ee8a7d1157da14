"""JSON schemas as grammars of llguidance, which the engines torch and llamacpp hold answers to.

Promises: a schema that llguidance cannot hold is refused with its reason.
Leaves to others: the tokens that a grammar allows (torch/constrained.py; llama.cpp has its own llguidance).
"""

from __future__ import annotations

import re

import msgspec

from heredity.core.errors import BadArgument, Unavailable, first_line

# Free whitespace would let a small model write blanks until its answer is cut.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def compact(schema: str) -> dict[str, object]:
    """A schema that allows one space behind each comma and colon, and none elsewhere. Raises BadArgument."""
    try:
        return {**msgspec.json.decode(schema, type=dict[str, object]), "x-guidance": _FORM}
    except (msgspec.DecodeError, RecursionError) as error:
        raise refused(first_line(error)) from None


def grammar_of(schema: str) -> str:
    """The grammar of a JSON schema. Raises BadArgument, and Unavailable without llguidance."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise Unavailable(
            "Answers that match a JSON schema need llguidance. Install it: pip install llguidance",
            code="package-missing",
        ) from None
    grammar = LLMatcher.grammar_from_json_schema(compact(schema))
    if why := LLMatcher.validate_grammar(grammar):
        raise refused(why)
    return grammar


# What llguidance writes, and what that means to the author of a schema.
_WORDS = (
    (
        re.compile(r"oneOf constraints are not supported.*"),
        "the alternatives of a `oneOf` overlap. Write `anyOf`, or give each a required property with another "
        "`const`",
    ),
    (re.compile(r"Unimplemented keys: \[(.*)\]"), r"these keywords are not supported: \1"),
    (
        re.compile(r"Resource '(.*)' is not present in a registry.*"),
        r"it refers to '\1', and nothing outside of it is read",
    ),
    (re.compile(r"Pointer '(.*)' does not exist"), r"it refers to its part '\1', which it lacks"),
    (re.compile(r"error: look-around.*"), "a pattern may not look ahead or behind"),
    (re.compile(r"regex parse error:[\s\S]*\nerror: (.*)"), r"a pattern is no regular expression: \1"),
    (re.compile(r"recursion limit exceeded.*"), "it is nested too deeply"),
)


def refused(why: str) -> BadArgument:
    """The error for a schema that cannot be held."""
    found = (match.expand(words) for form, words in _WORDS if (match := form.search(why)))
    line = next(found, why.split("\n")[0])[:300]
    return BadArgument(
        f"this JSON schema cannot be held: {line}", code="bad-schema", key="decoding.json_schema"
    )
