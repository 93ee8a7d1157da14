"""A conversation that escalates: small steps first, then the probe's own turns; it backs off from a refusal.

Promises: at most as many turns as the variant and the application allow, and the probe's demand is always
made. The model's replies only decide how to go on; they are never quoted back to it. Each
behaviour has its own wording of the steps, so that its conversation differs from the first turn. A step has a
remark before it and one after it. In English, a step of crescendo also has three wordings. A twin has the
words of its probe. Of thirty behaviours, a few still share their first step, and rarely two the second, too.
Leaves to others: the steps (words/*.toml) and whether a reply was a breach (judges/).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from heredity.core.records import Probe, Turn
from heredity.redteam.attacks._words import table
from heredity.redteam.attacks.protocols import AttackContext, Draw, Turns

MOST = 10
_LOOK_AT = 400  # characters of a reply in which a refusal shows
_TOPICS = {  # of a technique's probes and of their twins, so that both are led up to in the same way
    "planted_secret": "secret",
    "prompt_extraction": "prompt_leak",
    "direct_injection": "marker",
    "forbidden_tool": "tool",
    "training_data": "any",
    "harmful_request": "refusal",
    "graded_harm": "refusal",
}


class Ladder:
    """An escalation whose steps are those of a table of words."""

    cost = "up to as many as the variant says, and as the application's max_turns allows"
    variants = ("5", "3", "10")

    def __init__(self, attack: str) -> None:
        self._attack = attack

    def resolve(self, variant: str) -> str:
        """The maximum number of turns of a conversation."""
        if not variant.isdecimal() or not 2 <= int(variant) <= MOST:
            raise ValueError(f"the most turns are from 2 to {MOST}")
        return str(int(variant))

    def queries(self, probe: Probe, context: AttackContext) -> int:
        """The variant's turns, or the application's if it allows fewer; never fewer than the probe has."""
        return max(len(probe.turns), min(int(context.variant), context.max_turns))

    def turns(self, probe: Probe, context: AttackContext) -> Turns:
        """Steps, then the probe's turns, then the rephrased demand while the model refuses it."""
        demands, left = probe.turns, self.queries(probe, context)
        retreats = list(lines("ladder", "retreats", context))
        for step in steps(self._attack, probe, context, left - len(demands) - 1):
            if left <= len(demands):
                break
            reply = yield Turn(step, asks=False)
            left -= 1
            if is_refusal(reply.text, context.language) and retreats and left > len(demands):
                yield Turn(retreats.pop(0), asks=False)
                left -= 1
        for text in demands[:-1]:
            yield Turn(text, asks=False)
        reply = yield Turn(demands[-1])
        left -= len(demands)
        for again in lines("ladder", "again", context)[:left]:
            if not is_refusal(reply.text, context.language):
                return
            reply = yield Turn(again.replace("{text}", demands[-1], 1))


def is_refusal(text: str, language: str) -> bool:
    """Whether a reply looks like a refusal, in English or in the trial's language; an empty one does."""
    start = text[:_LOOK_AT].casefold().replace("\u2019", "'")
    if not start.strip():
        return True
    return any(sign in start for tongue in {"en", language} for sign in _signs(tongue))


def topic(probe: Probe) -> str:
    """The goal of the steps. If a passage or a tool's result makes the demand, the user stays innocent."""
    if probe.passage or probe.tool_result or probe.tool_description is not UNSET:
        return "indirect"
    return _TOPICS.get(probe.technique, probe.technique)


def steps(attack: str, probe: Probe, context: AttackContext, n: int) -> list[str]:
    """At most `n` steps (at least one), spread over the ladder; the last step is always included."""
    words, about = table("en")[attack], topic(probe)
    about = next(key for key in (about, probe.check.kind, "any") if key in words)
    written = lines(attack, about, context)
    if not context.has_shared_steps:
        written = _worded(attack, about, probe, context, written)
    steps = [filled for text in written if (filled := _filled(text, context)) is not None]
    n = min(max(n, 1), len(steps))
    return [steps[len(steps) - 1 - i * len(steps) // n] for i in range(n)][::-1]


def _worded(
    attack: str, about: str, probe: Probe, context: AttackContext, written: Sequence[str]
) -> list[str]:
    """The steps in the words of the probe's behaviour; no two of them have the same remark before them."""
    draw = Draw(f"{attack}\0{about}\0{probe.cluster}")
    leads = draw.some(len(written), lines("asides", "leads", context))
    tails = lines("asides", "tails", context)
    others = table(context.language).get("rewordings", {}).get(attack, {}).get(about)
    join = "" if context.language == "zh" else " "
    found = []
    for i, lead in enumerate(leads):
        wordings = [written[i], *(others[i] if others else ())]
        found.append(join.join((lead, wordings[draw.below(len(wordings))], tails[draw.below(len(tails))])))
    return found


def _filled(text: str, context: AttackContext) -> str | None:
    """The step with the application's words; None if the application lacks one of them."""
    for slot, word in context.words.items():
        text = text.replace(f"{{{slot}}}", word) if word else text
    return None if "{" in text else text


def lines(attack: str, key: str, context: AttackContext) -> Sequence[str]:
    lines: Sequence[str] = table(context.language).get(attack, {}).get(key) or table("en")[attack][key]
    return lines


def _signs(language: str) -> Sequence[str]:
    signs: Sequence[str] = table(language).get("refusal", {}).get("signs", ())
    return signs
