"""What attacks need beside a target that answers: an attacker model, or the target's weights.

Promises: what is missing is said when the study is planned, before anything is asked.
Leaves to others: the attacker model and its answers (attackers.py), the engines that hold weights (engines/).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from heredity import engines
from heredity.application.spec import Application
from heredity.core.errors import UsageError
from heredity.core.records import Model, Probe
from heredity.redteam.attacks._context import How, within
from heredity.redteam.attacks._spec import Attack

_NO_LIMIT = 64  # replies of a conversation: the most that an application may allow


def check_attacker(laid: Sequence[Attack], *, is_there: bool) -> None:
    """Raise UsageError where an attack has no attacker model to ask, or one is there that none asks."""
    asking = [attack.spec for attack in laid if attack.needs_attacker]
    if asking and not is_there:
        raise UsageError(
            f"Attack '{asking[0]}' has a model write its words; name it: --attacker MODEL",
            code="attacker-missing",
        )
    if is_there and not asking:
        raise UsageError(
            "No attack of this study asks an attacker model: leave --attacker out.", code="attacker-unused"
        )


def closed(laid: Sequence[Attack], models: Sequence[Model]) -> list[tuple[str, str]]:
    """("*", reason) for each attack that cannot get at a model's weights; its trials are error rows."""
    return [
        ("*", f"{why_closed(attack, engines.choose(model))} ('{model.name}')")
        for model in models
        for attack in laid
        if attack.needs_weights and not engines.is_open(model)
    ]


def doubts(
    laid: Sequence[Attack], probes: Sequence[Probe], application: Application, samples: int
) -> list[str]:
    """What can be asked, and will not show what it seems to: a line each."""
    how, found = within(application), []
    free = msgspec.structs.replace(how, max_turns=_NO_LIMIT)
    for attack in laid:
        wanted = max((attack.queries(probe, free) for probe in probes), default=0)
        if any(attack.queries(probe, how) < attack.queries(probe, free) for probe in probes):
            found.append(
                f"{attack.spec} takes up to {wanted} turns, and the application allows {how.max_turns} "
                "(max_turns): it is cut short."
            )
    if samples > 1 and application.decoding.temperature == 0:
        same = [attack.spec for attack in laid if probes and not _draws(attack, probes[0], how)]
        if same:
            found.append(
                f"{samples} samples under greedy decoding (temperature 0) are the same words and the same "
                f"answer each time, under {', '.join(same)}. Set a temperature, or ask once."
            )
    return found


def _draws(attack: Attack, probe: Probe, how: How) -> bool:
    """Whether another sample of an attack is asked in other words, or answered by chance."""
    if attack.needs_attacker or attack.searches:
        return True
    first = []
    for sample in (0, 1):
        turns = attack(probe, msgspec.structs.replace(how, sample=sample, seed=sample + 1))
        first.append(next(turns))
        turns.close()
    decoding = getattr(first[0], "decoding", None)
    return first[0] != first[1] or (decoding is not None and decoding.temperature > 0)


def why_closed(attack: Attack, engine: str) -> str:
    """Why an attack on weights cannot work behind this engine."""
    return f"skipped: {attack.spec} works on weights in the torch engine, and this model is behind '{engine}'"
