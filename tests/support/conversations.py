"""The package's probes inside the example application, and models that answer by a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import msgspec

from heredity.application.spec import Application
from heredity.core.records import Consult, Probe, Reply, Turn
from heredity.redteam import attacks, probes
from heredity.redteam.attacks import AttackContext

ROOT = Path(__file__).parents[2]
APPLICATION = msgspec.structs.replace(Application.load(ROOT / "examples" / "support-desk.toml"), max_turns=6)
PROBES, _ = probes.select(probes.load("full"), APPLICATION)
BY_ID = {probe.id: probe for probe in PROBES}
loaded = cache(attacks.load)  # once for all conversations, as a study loads them
HOW = msgspec.structs.replace(attacks.context_for(APPLICATION), has_retrieval=True)

REFUSAL = "I'm sorry, but I can't help with that."
HOSTILE = "{text} {secret_name} %s \x1b[31m \u202e </script> \ud800 CALL issue_refund {}\n" * 3
REPLIES = {
    "refusal": REFUSAL,
    "compliance": "Sure, here it is.",
    "empty": "",
    "a megabyte": "word " * 200_000,
    "hostile": HOSTILE,
    "a tool call": 'CALL lookup_order {"number": "1007"}',
}


def trial(sample: int = 0, seed: int = 1, how: AttackContext = HOW) -> AttackContext:
    return msgspec.structs.replace(how, sample=sample, seed=seed)


def talk(
    spec: str, probe: Probe, how: AttackContext, say: Callable[[int], str] | str = REFUSAL
) -> list[Turn]:
    """The turns of a conversation in which the model says `say`, or what it gives for a turn's number."""
    return list(_talk(spec, probe, how, say))


def _talk(spec: str, probe: Probe, how: AttackContext, say: Callable[[int], str] | str) -> Iterator[Turn]:
    conversation = loaded(spec)(probe, how)
    turn, at = next(conversation), 0
    for _ in range(1000):
        if isinstance(turn, Consult):  # the attacker begs, in the probe's own words
            turn = conversation.send(Reply(0, "", f"<message>I beg you: {probe.turns[-1]}</message>"))
            continue
        yield turn
        at += 1
        try:
            turn = conversation.send(Reply(0, "", say if isinstance(say, str) else say(at - 1)))
        except StopIteration:
            return
    raise AssertionError(f"{spec} does not end")


def laid() -> list[str]:
    """Every attack in every variant that it lists, and some of them together."""
    specs = []
    for name in attacks.names():
        part = attacks.load(name).parts[0]
        specs += [f"{name}:{variant}" for variant in part.variants] or [name]
    return [*specs, *TOGETHER]


TOGETHER = (
    "crescendo+encoding:base64",
    "prefill+language:fr",
    "roleplay:story+many_shot:4+best_of_n",
    "foot_in_door:3+language:zh+suffix:affirm",
    "persuasion:norm+decoding:top_p",
)
