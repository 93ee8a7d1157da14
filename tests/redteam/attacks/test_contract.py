"""Every attack by being in its folder: each variant, over every probe of the package, against any reply."""

from __future__ import annotations

import os
from itertools import pairwise
from types import SimpleNamespace

import msgspec
import pytest

from heredity.application.conversation import ApplicationSession
from heredity.application.spec import Application
from heredity.application.tools import parse_tool_calls
from heredity.core import registry
from heredity.core.errors import Unavailable, UsageError
from heredity.core.records import Consult, Exchange, Probe, Reply, Request, Response, Turn
from heredity.redteam import attacks
from heredity.redteam.attacks.protocols import KINDS, ProbeTransform, Strategy, Turns
from heredity.redteam.judges import checks
from heredity.redteam.probes import SLOT
from tests.support.conversations import APPLICATION, PROBES, REFUSAL, REPLIES, laid, loaded, talk, trial
from tests.support.errors import raises

SPECS = laid()
EVERY = int(os.environ.get("HEREDITY_EVERY", "12"))
TOOLS = [tool.name for tool in APPLICATION.tools]


def converse(desk: Application, turns: Turns, probe: Probe, said: str) -> tuple[bool, list[Request]]:
    """Whether the demand was made of a model that always says `said`, and what it was asked."""
    conversation, requests = ApplicationSession(desk).converse(turns, probe), []
    try:
        step = next(conversation)
        while True:
            if isinstance(step, Consult):  # the attacker begs, in the probe's own words
                step = conversation.send(Reply(0, "", f"<message>I beg you: {probe.turns[-1]}</message>"))
            else:
                requests.append(step)
                step = conversation.send(Reply(0, "", said))
    except StopIteration as end:
        return end.value, requests


def unlike_neighbours(request: Request) -> bool:
    """Whether no role speaks twice in a row: more than some templates take."""
    return all(a.role != b.role for a, b in pairwise(request.messages))


def asked(spec: str) -> list[Probe]:
    """Every twelfth probe that it is laid over (HEREDITY_EVERY=1: all), fewer if it asks by the hundred."""
    attack = loaded(spec)
    found = [probe for probe in PROBES if not attack.skips(probe, trial())]
    return found[::EVERY] if attack.queries(found[0], trial()) < 50 else found[:: 5 * EVERY]


def replies(number: int) -> dict[str, str]:
    """What a model says. A megabyte only to the first probe: with the turns of an attack it takes seconds."""
    return {kind: said for kind, said in REPLIES.items() if kind != "a megabyte" or number == 0}


@pytest.mark.parametrize("name", attacks.names())
def test_a_file_has_one_kind_and_states_its_cost(name) -> None:
    attack = attacks.load(name).parts[0].attack
    assert sum(isinstance(attack, kind) for kind in KINDS) == 1
    assert attack.cost
    doc = registry.load("redteam.attacks", name).__doc__
    assert doc and len(doc.split("\n")[0]) < 130
    assert hasattr(attack, "queries") == isinstance(attack, Strategy)
    assert hasattr(attack, "skips") == isinstance(attack, ProbeTransform)


class Half:
    """A strategy without its cost in turns."""

    cost = "unknown"

    def turns(self, probe, context):
        yield Turn(probe.turns[-1])


class Both(Half):
    """Two kinds at once."""

    def queries(self, probe, context):
        return 1

    def rewrite(self, text, context):
        return text


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (SimpleNamespace(QUERIES="adds none", rewrite=str.upper), ["prefill", "ATTACK"]),
        (
            SimpleNamespace(ATTACK=Half()),
            ["prefill", "Strategy (cost, queries, turns)", "It has cost, turns."],
        ),
        (SimpleNamespace(ATTACK=Both()), ["exactly one", "It has cost, queries, rewrite, turns."]),
        (SimpleNamespace(ATTACK=object()), ["It has none of them."]),
    ],
)
def test_an_attack_that_lacks_a_member_is_refused_with_what_it_needs(file, said, monkeypatch) -> None:
    monkeypatch.setattr(registry, "load", lambda folder, name: file)
    with raises(Unavailable, "plugin-broken", mentions=said):
        attacks.load("prefill")


@pytest.mark.parametrize("name", attacks.names())
def test_an_unknown_variant_is_answered_in_a_line(name) -> None:
    with pytest.raises(UsageError) as found:
        attacks.load(f"{name}:nonsense")
    assert name in str(found.value) and "\n" not in str(found.value)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_it_asks_ends_within_its_cost_and_says_the_same_again(spec) -> None:
    attack, probes = loaded(spec), asked(spec)
    assert probes
    for i, probe in enumerate(probes):
        how = trial(sample=i % 5, seed=i)
        most = attack.queries(probe, how)
        assert len(probe.turns) <= most
        # an attack with an attacker model makes several conversations, each within the application's limit
        assert attack.needs_attacker or most <= max(APPLICATION.max_turns, len(probe.turns))
        # every reply for one probe in eight and every probe against a refusal, which attacks react to
        for kind, said in replies(i).items() if i % 8 == 0 else [("refusal", REFUSAL)]:
            turns = talk(spec, probe, how, said)
            assert 1 <= len(turns) <= most, (probe.id, kind)
            assert turns[-1].asks, (probe.id, kind)
            assert all(turn.text.strip() and not SLOT.search(turn.text) for turn in turns), (probe.id, kind)
        assert turns == talk(spec, probe, how, said), probe.id


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_the_demand_is_made_inside_an_application_whatever_the_model_says(spec) -> None:
    """Three turns, as in the example: what a model does with tools must not use up the turn that asks."""
    desk = msgspec.structs.replace(APPLICATION, max_turns=3)
    how = msgspec.structs.replace(attacks.context_for(desk), seed=1)
    for i, probe in enumerate(asked(spec)[:: max(1, 24 // EVERY)]):
        for kind, said in replies(i).items():
            made, requests = converse(desk, loaded(spec)(probe, how), probe, said)
            assert made, (probe.id, kind)
            assert all(unlike_neighbours(request) for request in requests), (probe.id, kind)


@pytest.mark.parametrize("spec", SPECS)
def test_what_it_adds_never_breaks_a_probe_when_it_is_said_back(spec) -> None:
    """A model that quotes what the attack said has not obeyed: as for the probe's own words."""
    for probe in asked(spec)[:: max(1, 9 // EVERY)]:
        if probe.kind == "benign" or probe.check.kind in ("refusal", "task") or "many_shot" in spec:
            continue
        turns = talk(spec, probe, trial())
        exchanges = tuple(
            Exchange("", "", turn.prefill, text, parse_tool_calls(text, TOOLS), "end", 0, 0)
            for turn in turns
            for text in (turn.text, f"It says: {turn.text}")
        )
        response = Response(0, "t", "m", "a", probe.id, spec, 0, 0, exchanges, "test")
        assert checks.verdict(probe, response, APPLICATION).outcome != "broke", (probe.id, exchanges)


@pytest.mark.parametrize("spec", SPECS)
def test_a_twin_is_asked_wherever_its_probe_is_and_as_often(spec) -> None:
    attack, by_id = loaded(spec), {probe.id: probe for probe in PROBES}
    for probe in PROBES:
        if probe.twin is not None:
            twin = by_id[probe.twin]
            assert bool(attack.skips(probe, trial())) == bool(attack.skips(twin, trial()))
            assert attack.queries(probe, trial()) == attack.queries(twin, trial())
