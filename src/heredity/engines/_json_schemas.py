"""JSON schemas as grammars of llguidance, which the engines torch and llamacpp hold answers to.

Promises: a schema that llguidance cannot hold is refused with its reason. A `oneOf` becomes an `anyOf` only
where its alternatives surely exclude each other.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote

import msgspec

from heredity.core.errors import BadArgument, Unavailable, first_line

# Free whitespace would let a small model write blanks until its answer is cut.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MAX_PATTERNS = 4  # that one text must match: the time to compile them together grows with their product


def compact(schema: str) -> dict[str, object]:
    """A schema that allows one space behind each comma and colon, and none elsewhere. Raises BadArgument."""
    try:
        compacted = msgspec.json.decode(schema, type=dict[str, object])
        n_patterns = _Patterns(compacted).most
        compacted = _without_one_of(compacted)
    except (msgspec.DecodeError, RecursionError) as error:
        raise refused(first_line(error)) from None
    if n_patterns > MAX_PATTERNS:
        raise refused(f"one text must match {n_patterns} patterns, and {MAX_PATTERNS} is the most")
    return {**compacted, "x-guidance": _FORM}


class _Patterns:
    """Counts the patterns that one text must match, where schemas are joined by `allOf` and `$ref`.

    A text is known by the name of its property, "*" for an item. The count is too small only for a property
    that another branch has under "*", and in a schema that is a part of itself.
    """

    def __init__(self, schema: dict[str, object]) -> None:
        self._schema, self._found = schema, dict[int, dict[str, int]]()
        self.most = max(self._counts(schema).values(), default=0)

    def _counts(self, node: object) -> dict[str, int]:
        """Return the number of each text of a part; "" is the part itself."""
        if not isinstance(node, dict):
            return {}
        if (known := self._found.get(id(node))) is not None:
            return known
        self._found[id(node)] = {}  # while it is counted, it adds nothing to itself
        total = {"": int("pattern" in node)}
        for branch in (_target(self._schema, node.get("$ref")), *_list_of(node.get("allOf"))):
            total = _merged(total, self._counts(branch), operator.add)
        below = dict[str, int]()
        for branch in (*_list_of(node.get("anyOf")), *_list_of(node.get("oneOf"))):
            below = _merged(below, self._counts(branch), max)
        for name in ("properties", "patternProperties"):
            parts = node.get(name)
            for key, part in parts.items() if isinstance(parts, dict) else ():
                known_as = str(key) if name == "properties" else "*"
                below = _merged(below, _named(self._counts(part), known_as), max)
        for part in (*_list_of(node.get("prefixItems")), node.get("items"), node.get("additionalProperties")):
            below = _merged(below, _named(self._counts(part), "*"), max)
        self._found[id(node)] = total = _merged(total, below, operator.add)
        return total


def _target(schema: object, reference: object) -> object:
    """Return the part of a schema that a reference names; None if it has none."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node = schema
    for name in reference[1:].split("/")[1:]:
        name = unquote(name).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list):
            node = dict(enumerate(node)).get(int(name)) if name.isdecimal() else None
        else:
            node = node.get(name) if isinstance(node, dict) else None
    return node


def _list_of(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _named(counts: dict[str, int], name: str) -> dict[str, int]:
    """Return the counts of a part as those of what holds it under this name."""
    return _merged({key: n for key, n in counts.items() if key}, {name: counts.get("", 0)}, max)


def _merged(one: dict[str, int], other: dict[str, int], how: Callable[[int, int], int]) -> dict[str, int]:
    return {name: how(one.get(name, 0), other.get(name, 0)) for name in {*one, *other}}


_DATA = ("const", "enum", "default", "examples")  # of a schema: what is in them is no schema
_DEEPEST = 8  # references and `allOf` that are followed from an alternative


def _without_one_of(schema: dict[str, object]) -> dict[str, object]:
    """Return the schema with `anyOf` for each `oneOf` whose alternatives differ in constants.

    llguidance tells alternatives apart by types and by texts only.
    """
    if b"/oneOf" in msgspec.json.encode(schema):  # a reference to a place that would be gone
        return schema

    def changed(node: object) -> object:
        if isinstance(node, list):
            return [changed(each) for each in node]
        if not isinstance(node, dict):
            return node
        copy = {key: each if key in _DATA else changed(each) for key, each in node.items()}
        if isinstance(node.get("oneOf"), list) and _is_told_apart(schema, node):
            joined = {"anyOf": copy.pop("oneOf")}
            copy["allOf"] = [*_list_of(copy.get("allOf")), joined]
        return copy

    without = changed(schema)
    assert isinstance(without, dict)
    return without


def _is_told_apart(schema: dict[str, object], node: dict[str, object]) -> bool:
    """Return True if no value surely matches two alternatives of the node's `oneOf`."""
    constants = [_constants(schema, each, node.get("type")) for each in _list_of(node["oneOf"])]
    for name in constants[0] if constants else ():
        values = [each[name] for each in constants if name in each]
        if len(values) == len(constants) and len(frozenset().union(*values)) == sum(map(len, values)):
            return True
    return False


def _constants(schema: object, alternative: object, kind: object) -> dict[str, frozenset[object]]:
    """Return the constants of each property that an alternative demands; "" are its own.

    kind: the type that its parent demands.
    """
    parts = list(_parts(schema, alternative))
    demanded = {str(name) for part in parts for name in _list_of(part.get("required"))}
    is_object = "object" in (kind, *(part.get("type") for part in parts))
    constants = dict[str, frozenset[object]]()
    for part in parts:
        constants.update(_named_constants("", part))
        properties = part.get("properties")
        if is_object and isinstance(properties, dict):
            for name in demanded & properties.keys():
                for each in _parts(schema, properties[name]):
                    constants.update(_named_constants(name, each))
    return constants


def _parts(schema: object, node: object, depth: int = 0) -> Iterator[dict[str, object]]:
    """Yield the schemas that a value must match to match this one, as far as they are followed."""
    if isinstance(node, dict) and depth < _DEEPEST:
        yield node
        for each in (_target(schema, node.get("$ref")), *_list_of(node.get("allOf"))):
            yield from _parts(schema, each, depth + 1)


def _named_constants(name: str, node: dict[str, object]) -> dict[str, frozenset[object]]:
    """Return the constants of a schema under a name; nothing if it has none, or others than scalars."""
    values = [node["const"]] if "const" in node else _list_of(node.get("enum"))
    if not values or any(isinstance(each, list | dict) for each in values):
        return {}
    return {name: frozenset((isinstance(each, bool), each) for each in values)}  # True == 1 in Python only


def grammar_of(schema: str) -> str:
    """The grammar of a JSON schema. Raises BadArgument, and Unavailable without llguidance."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise Unavailable(
            "Answers that match a JSON schema need llguidance. Install it: pip install llguidance",
            code="package-missing",
        ) from None
    whole = compact(schema)
    try:
        grammar = LLMatcher.grammar_from_json_schema(whole)
    except ValueError as error:
        raise refused(first_line(error)) from None
    if why := LLMatcher.validate_grammar(grammar):
        raise refused(why)
    return grammar


# What llguidance writes, and what that means to the author of a schema.
_WORDS = (
    (
        re.compile(r"oneOf constraints are not supported.*"),
        "the alternatives of a `oneOf` may overlap. Write `anyOf`, or make each an object that requires one "
        "property and gives it another `const`: a text, a number, true or false",
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
    (
        re.compile(r".*not JSON serializable: (-?\d{1,40})\d*"),
        r"the whole number \1 is below -2^63 or above 2^64 - 1",
    ),
)


def refused(why: str) -> BadArgument:
    """The error for a schema that cannot be held."""
    reasons = (match.expand(words) for form, words in _WORDS if (match := form.search(why)))
    line = next(reasons, why.split("\n")[0])[:300]
    return BadArgument(f"this JSON schema cannot be held: {line}", key="decoding.json_schema")
