"""Guards: checks and rewrites between a user, a model and the outside. Each file here is one kind.

To add a kind, add one file. It defines a struct of its settings, a GuardRule (protocols.py), and names it as
`GUARD`. The struct's fields are the keys that an application's file may give:

    [[guards]]
    kind = "NAME"

Promises: a guard depends on the text and the application only, so a guarded model answers the same again.
Leaves to others: the engine behind guards (../guarded.py), and their effect on a study (study/).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec

from heredity.application.guards.protocols import GuardModule, GuardRule, GuardSpec
from heredity.core import registry
from heredity.core.errors import BadArgument, UnknownName, code_of, did_you_mean

__all__ = ["GuardRule", "GuardSpec", "chosen", "content", "kinds", "load_guard", "parse_guard"]

FOLDER = "application.guards"
_OWN = {"kind", "name", "is_on", "fails"}  # keys of a table that are not settings of its kind


def kinds() -> list[str]:
    """The kinds of guards, sorted."""
    return registry.names(FOLDER)


@cache
def guard_class(kind: str) -> type[GuardRule]:
    """The struct of a kind. Raises UnknownName with the nearest kind."""
    return registry.load_as(GuardModule, FOLDER, kind).GUARD


def load_guard(spec: GuardSpec) -> GuardRule:
    """The guard of a stored spec. Raises UnknownName for its kind, BadArgument for its settings."""
    kind = guard_class(spec.kind)
    try:
        return msgspec.convert(spec.settings, kind)
    except (msgspec.ValidationError, ValueError) as error:
        unknown = sorted(set(spec.settings) - set(kind.__struct_fields__))
        known = ", ".join(sorted(kind.__struct_fields__)) or "none"
        text = (
            f"unknown key '{unknown[0]}'.{did_you_mean(unknown[0], kind.__struct_fields__)}"
            if unknown
            else ""
        )
        raise BadArgument(
            f"guard '{spec.label}': {text or str(error)} Its settings: {known}",
            code=code_of(error),
            key="guards",
        ) from None


def content(specs: Sequence[GuardSpec]) -> list[GuardSpec]:
    """The guards without the places of their files: what a digest of them covers.

    Of a kind from outside, it covers the hash of its file, too.
    """
    found = []
    for spec in specs:
        settings = {k: v for k, v in spec.settings.items() if k not in guard_class(spec.kind).PLACES}
        if there := registry.outside(FOLDER, spec.kind):
            settings["plugin"] = there.sha256
        found.append(msgspec.structs.replace(spec, settings=settings))
    return found


def parse_guard(table: object, folder: Path) -> GuardSpec:
    """The guard that a table `[[guards]]` of a file in `folder` describes.

    Raises BadArgument with the key at fault, and BadInput for a file that a setting names.
    """
    if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
        raise BadArgument('a guard needs `kind`, such as kind = "links"', key="guards")
    own = {key: value for key, value in table.items() if key in _OWN}
    settings = {key: value for key, value in table.items() if key not in _OWN}
    try:
        settings = guard_class(table["kind"]).completed(settings, folder)
        spec = msgspec.convert({**own, "settings": settings}, GuardSpec)
        load_guard(spec)
    except UnknownName as error:
        raise BadArgument(str(error), code=error.code, key="guards") from None
    except msgspec.ValidationError as error:
        raise BadArgument(f"a guard of kind '{table['kind']}': {error}", key="guards") from None
    return spec


def chosen(names: str, own: Sequence[GuardSpec]) -> tuple[GuardSpec, ...]:
    """The guards that a study switches on together: "links", or "links+secrets".

    own: those of the application. A name is one of theirs, or a kind with its defaults. Raises UnknownName.
    """
    named = {spec.label: spec for spec in own}
    found = []
    for name in names.split("+"):
        if name not in named and name not in kinds():
            raise UnknownName("guard", name, [*named, *kinds()], ", ".join(dict.fromkeys([*named, *kinds()])))
        spec = named.get(name) or GuardSpec(name, name.rpartition(".")[2] if "." in name else "")
        if (there := registry.outside(FOLDER, name)) and isinstance(there.plugin, GuardRule):
            spec = msgspec.structs.replace(spec, settings=msgspec.to_builtins(there.plugin))
        found.append(msgspec.structs.replace(spec, is_on=True))
        load_guard(found[-1])
    return tuple(found)


def standing(specs: Sequence[GuardSpec]) -> Sequence[GuardSpec]:
    """Those of an application's guards that hold for every model."""
    return [spec for spec in specs if spec.is_on]
