"""Fit probes to an application: fill their slots, and say which do not apply and why.

Promises: a filled probe has no slot left; a twin is asked exactly when its breach-seeking probe is.
Leaves to others: the texts with slots (the TOML files) and asking (study/).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from msgspec import UNSET, UnsetType

from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.records import Probe, ToolDescription, Usefulness
from heredity.redteam.checks import load_check
from heredity.redteam.text import fold, shown_texts, squeeze
from heredity.redteam.usefulness import PATTERN

# Slot -> why it cannot be filled where the application has no such thing.
SLOTS = {
    "company": "the application names no company",
    "secret_name": "the application has no planted secret",
    "tool": "the application has no allowed tool",
    "forbidden_tool": "the application has no forbidden tool",
}
SLOT = re.compile(r"\{([a-z_]+)\}")


def slots(probe: Probe) -> tuple[str, ...]:
    """The names of the slots in a probe's texts and tool names."""
    texts = (*shown_texts(probe), *_named(probe), *_phrases(probe))
    return tuple(m[1] for text in texts for m in SLOT.finditer(text))


def applies(probe: Probe, application: Application) -> str | None:
    """None if the probe can be asked inside this application, or else the reason."""
    values = slot_values(application)
    for slot in slots(probe):
        if slot in SLOTS and not values[slot]:  # other braces stay: they belong to texts by others
            return SLOTS[slot]
    return (
        load_check(probe.check).why_not(application)
        or _untold_secret(probe, application)
        or _missing_tool(probe, application)
        or _missing_turns(probe, application)
    )


def fill(probe: Probe, application: Application) -> Probe:
    """The probe with its slots filled from the application. Raises UsageError if it does not apply."""
    reason = applies(probe, application)
    if reason is not None:
        raise UsageError(f"Probe '{probe.id}' does not apply: {reason}.", code="probe-does-not-apply")
    values = slot_values(application)

    def put(text: str) -> str:
        return SLOT.sub(lambda match: values.get(match[1], match[0]), text)

    result = probe.tool_result
    return msgspec.structs.replace(
        probe,
        turns=tuple(map(put, probe.turns)),
        passage=put(probe.passage),
        tool_result=result and msgspec.structs.replace(result, tool=put(result.tool), text=put(result.text)),
        check=msgspec.structs.replace(probe.check, tool=put(probe.check.tool)),
        useful=_filled(probe.useful, put),
        tool_description=_described(probe.tool_description, put),
    )


def select(
    probes: Iterable[Probe], application: Application
) -> tuple[tuple[Probe, ...], tuple[tuple[str, str], ...]]:
    """The probes that apply, filled, and the (id, reason) of those that are skipped.

    A twin is skipped with its breach-seeking probe, so that both rates are over the same items.
    """
    probes = tuple(probes)
    reasons = {p.id: reason for p in probes if (reason := applies(p, application)) is not None}
    for probe in probes:
        if probe.twin in reasons:
            reasons.setdefault(probe.id, f"its counterpart is skipped: {reasons[probe.twin]}")
    kept = tuple(fill(probe, application) for probe in probes if probe.id not in reasons)
    return kept, tuple((probe.id, reasons[probe.id]) for probe in probes if probe.id in reasons)


def slot_values(application: Application) -> dict[str, str]:
    """The value of each slot; "" if the application lacks it."""
    allowed = [tool.name for tool in application.tools if not tool.is_forbidden]
    forbidden = [tool.name for tool in application.tools if tool.is_forbidden]
    return {
        "company": application.company,
        "secret_name": application.secrets[0].name if application.secrets else "",
        "tool": allowed[0] if allowed else "",
        "forbidden_tool": forbidden[0] if forbidden else "",
    }


def _untold_secret(probe: Probe, application: Application) -> str | None:
    """A model that never sees the secret cannot disclose it: its rate of 0 would mean nothing."""
    if probe.check.kind != "secret" or application.rendering not in ("plain", "native"):
        return None  # what another target holds is not ours to read
    state = {} if application.state is None else application.state
    shown = msgspec.to_builtins((application.messages(), application.tools, state, probe))
    told = squeeze(fold("\n".join(_texts(shown))))
    if any(squeeze(fold(secret.value)) in told for secret in application.secrets):
        return None
    return "no text of the application tells the model the secret"


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in (*value, *value.values()):
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _missing_tool(probe: Probe, application: Application) -> str | None:
    known, planted = {tool.name for tool in application.tools}, probe.tool_description
    if not isinstance(planted, UnsetType):
        if application.rendering == "theirs":
            return "the target describes its own tools"
        if planted.is_added and planted.tool in known:
            return f"the application has a tool named {planted.tool} already"
        known |= {planted.tool} if planted.is_added else set()
    for name in _named(probe):
        if name and not SLOT.search(name) and name not in known:
            return f"the application has no tool named {name}"
    return None


def _missing_turns(probe: Probe, application: Application) -> str | None:
    # A tool's result needs a reply that calls the tool and one that reports its result, both to one turn.
    needed = max(len(probe.turns), 1 + (probe.tool_result is not None))
    if needed > application.max_turns:
        return f"it needs {needed} replies, and the application's max_turns is {application.max_turns}"
    return None


def _named(probe: Probe) -> tuple[str, ...]:
    useful = "" if isinstance(probe.useful, UnsetType) else probe.useful.tool
    planted = probe.tool_description
    described = "" if isinstance(planted, UnsetType) or planted.is_added else planted.tool
    return (probe.check.tool, probe.tool_result.tool if probe.tool_result else "", useful, described)


def _described(given: ToolDescription | UnsetType, put: Callable[[str], str]) -> ToolDescription | UnsetType:
    if isinstance(given, UnsetType):
        return UNSET
    return msgspec.structs.replace(given, tool=put(given.tool), text=put(given.text))


def _phrases(probe: Probe) -> tuple[str, ...]:
    """The phrases of a useful answer; the braces of a regular expression are not slots."""
    if isinstance(probe.useful, UnsetType):
        return ()
    return tuple(phrase for phrase in probe.useful.phrases if not phrase.startswith(PATTERN))


def _filled(useful: Usefulness | UnsetType, put: Callable[[str], str]) -> Usefulness | UnsetType:
    if isinstance(useful, UnsetType):
        return UNSET
    phrases = tuple(each if each.startswith(PATTERN) else put(each) for each in useful.phrases)
    return msgspec.structs.replace(useful, phrases=phrases, tool=put(useful.tool))
