"""A friendly conversation that goes from the general to the demand, and takes a refused step back.

Source: Russinovich et al. 2024 (arXiv 2404.01833). As in the paper, a refused message and its refusal are
removed from the chat, and another message takes their place. The probe's own judge decides when to stop. It
is asked after the demand, and after each step if a check decides. A friendly answer to a step does no harm.
If the study has an attacker model (`--attacker`), it writes each step from the conversation so far. Without
one, the steps are written for each kind of breach.
The variant is the maximum number of turns, refused ones included, from 2 to 10; an application's `max_turns`
may allow fewer.
"""

from __future__ import annotations

from collections.abc import Generator

from heredity.core.records import Consult, Message, Probe, Reply, Turn
from heredity.redteam.attacks import _words
from heredity.redteam.attacks._words import BROKEN, AttackTry, Ladder, is_refusal, lines, steps, table
from heredity.redteam.attacks.protocols import AdaptiveStrategy, AttackContext, Turns
from heredity.redteam.checks import is_judged

_SHOWN = 400  # characters of a reply that the attacker sees
_REMEMBERED = 4  # turns that the attacker sees: a small one has a small context
_REFUSED = 1  # the score of a refusal
Writing = Generator[Turn | Consult, Reply, str]


class Crescendo(Ladder):
    """A ladder that backtracks from refusals, and repeats the demand until the probe is broken."""

    cost = (
        "up to as many as the variant says, and as the application's max_turns allows; with an attacker, as"
        " many questions to it"
    )
    is_adaptive = True

    def turns(self, probe: Probe, context: AttackContext) -> Turns:
        """Steps, then the probe's turns, then the rephrased demand until the referee finds a breach.

        A breach that a check finds in a step ends the conversation before the demand.
        """
        demands, left = probe.turns, self.queries(probe, context)
        waiting = steps("crescendo", probe, context, left - len(demands) - 1)
        detours, path, is_refused = list(lines("ladder", "detours", context)), list[AttackTry](), False
        is_checked = probe.kind == "breach" and not is_judged(probe.check)
        kept = len(demands) + (left - len(demands) >= 2)  # for the demand, and once more in other words
        while waiting and left > kept:
            text = (yield from _written(probe, context, path, is_refused)) or waiting[0]
            del waiting[0]
            reply = yield Turn(text, asks=False, retracts=is_refused)
            left -= 1
            score = context.referee.score()
            if score >= BROKEN and is_checked and not context.goes_on:
                return
            is_refused = score == _REFUSED or is_refusal(reply.text, context.language)
            if not is_refused:
                path.append(AttackTry(text, reply.text, score))
            elif detours:
                waiting.insert(0, detours.pop(0))
        for text in demands[:-1]:
            yield Turn(text, asks=False, retracts=is_refused)
            is_refused = False
        reply = yield Turn(demands[-1], retracts=is_refused)
        yield from _repeated(probe, context, reply, left - len(demands))


def _repeated(probe: Probe, context: AttackContext, reply: Reply, left: int) -> Turns:
    """The demand in other words, each in place of the one before, until it is granted; at most `left`."""
    tried, text = list[AttackTry](), probe.turns[-1]
    for again in lines("ladder", "again", context)[: max(left, 0)]:
        score = context.referee.score()
        if score >= BROKEN or (not score and not is_refusal(reply.text, context.language)):
            return
        tried.append(AttackTry(text, reply.text, score))
        text = again.replace("{text}", probe.turns[-1], 1)
        if context.has_attacker:
            answer = yield _words.ask(probe, context, tried[-_REMEMBERED:])
            text = _words.read_message(answer, probe, context) or text
        reply = yield Turn(text, retracts=True)


def _written(probe: Probe, context: AttackContext, path: list[AttackTry], is_refused: bool) -> Writing:
    """The next step in the attacker's words; "" without an attacker, or if they cannot be used."""
    if not context.has_attacker:
        return ""
    text = _words.message_of((yield _question(probe, path, is_refused)))
    is_demand = text.casefold() == probe.turns[-1].casefold()
    return "" if is_demand or not text or context.referee.is_void(text) else text


def _question(probe: Probe, path: list[AttackTry], is_refused: bool) -> Consult:
    words = table("en")["climber"]
    shown = [
        words["said"].replace("{reply}", one.reply[:_SHOWN]).replace("{said}", one.text)
        for one in path[-_REMEMBERED:]
    ]
    asked = words["ask"].replace("{note}", words["refused"] if is_refused else "")
    asked = asked.replace("{path}", "\n".join(shown) or words["start"])
    # last, and once: a demand or a reply may have braces of its own
    return Consult(
        (Message("system", words["system"]), Message("user", asked.replace("{demand}", probe.turns[-1], 1)))
    )


ATTACK: AdaptiveStrategy = Crescendo("crescendo")
