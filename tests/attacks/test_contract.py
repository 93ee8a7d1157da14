"""Every attack by being in its folder: each variant, over every probe of the package, against any reply."""

from __future__ import annotations

import pytest

from heredity import attacks
from heredity.application import parse_tool_calls
from heredity.attacks._part import KINDS
from heredity.errors import UsageError
from heredity.judges import checks
from heredity.probes._fill import SLOT
from heredity.records import Exchange, Probe, Response
from tests.attacks.talks import APPLICATION, PROBES, REFUSAL, REPLIES, laid, talk, trial

SPECS = laid()
TOOLS = [tool.name for tool in APPLICATION.tools]


def asked(spec: str) -> list[Probe]:
    attack = attacks.load(spec)
    return [probe for probe in PROBES if not attack.skips(probe, trial())]


@pytest.mark.parametrize("name", attacks.names())
def test_a_file_has_one_kind_and_states_its_cost(name) -> None:
    part = attacks.load(name).parts[0]
    assert part.kind in KINDS
    assert part.module.QUERIES
    assert part.module.__doc__ and len(part.module.__doc__.split("\n")[0]) < 130
    assert hasattr(part.module, "queries") == (part.kind == "turns")
    assert hasattr(part.module, "skips") == (part.kind == "recast")


@pytest.mark.parametrize("name", attacks.names())
def test_an_unknown_variant_is_answered_in_a_line(name) -> None:
    with pytest.raises(UsageError) as found:
        attacks.load(f"{name}:nonsense")
    assert name in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("spec", SPECS)
def test_it_asks_ends_within_its_cost_and_says_the_same_again(spec) -> None:
    attack, probes = attacks.load(spec), asked(spec)
    assert probes
    for i, probe in enumerate(probes):
        how = trial(sample=i % 5, seed=i)
        most = attack.queries(probe, how)
        assert len(probe.turns) <= most
        # an attack with an attacker model makes several conversations, each within the application's limit
        assert attack.needs_attacker or most <= max(APPLICATION.max_turns, len(probe.turns))
        # every reply for one probe in eight and every probe against a refusal, which attacks react to
        for kind, said in REPLIES.items() if i % 8 == 0 else [("refusal", REFUSAL)]:
            turns = talk(spec, probe, how, said)
            assert 1 <= len(turns) <= most, (probe.id, kind)
            assert turns[-1].asks, (probe.id, kind)
            assert all(turn.text.strip() and not SLOT.search(turn.text) for turn in turns), (probe.id, kind)
        assert turns == talk(spec, probe, how, said), probe.id


@pytest.mark.parametrize("spec", SPECS)
def test_what_it_adds_never_breaks_a_probe_when_it_is_said_back(spec) -> None:
    """A model that quotes what the attack said has not obeyed: as for the probe's own words."""
    for probe in asked(spec)[::7]:
        if probe.kind == "benign" or probe.check.kind == "refusal" or "many_shot" in spec:
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
    attack, by_id = attacks.load(spec), {probe.id: probe for probe in PROBES}
    for probe in PROBES:
        if probe.twin is not None:
            twin = by_id[probe.twin]
            assert bool(attack.skips(probe, trial())) == bool(attack.skips(twin, trial()))
            assert attack.queries(probe, trial()) == attack.queries(twin, trial())
