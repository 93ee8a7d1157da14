"""What attacks need beside a target that answers: an attacker model, or the target's weights.

Promises: what is missing is said when the study is planned, before anything is asked.
Leaves to others: the attacker model and its answers (attackers.py), the engines that hold weights (engines/).
"""

from __future__ import annotations

from collections.abc import Sequence

from heredity import engines
from heredity.attacks._spec import Attack
from heredity.errors import UsageError
from heredity.records import Model


def check_attacker(laid: Sequence[Attack], *, is_there: bool) -> None:
    """Raise UsageError where an attack has no attacker model to ask, or one is there that none asks."""
    asking = [attack.spec for attack in laid if attack.needs_attacker]
    if asking and not is_there:
        raise UsageError(f"Attack '{asking[0]}' has a model write its words; name it: --attacker MODEL")
    if is_there and not asking:
        raise UsageError("No attack of this study asks an attacker model: leave --attacker out.")


def closed(laid: Sequence[Attack], models: Sequence[Model]) -> list[tuple[str, str]]:
    """("*", reason) for each attack that cannot get at a model's weights; its trials are error rows."""
    return [
        ("*", f"{why_closed(attack, engines.choose(model))} ('{model.name}')")
        for model in models
        for attack in laid
        if attack.needs_weights and not engines.is_open(model)
    ]


def why_closed(attack: Attack, engine: str) -> str:
    """Why an attack on weights cannot work behind this engine."""
    return f"skipped: {attack.spec} works on weights in the torch engine, and this model is behind '{engine}'"
