"""Behaviours that broke in the same conversation are named, because their rate counts each of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from heredity.study.aggregate import read_proven
from heredity.study.estimates import Estimates, SameConversations
from heredity.study.headline import headline
from heredity.study.plan import Analysis, Plan
from heredity.study.spec import declare
from tests.support.studies import plan, probes, study


def leaky(has_shared_steps: bool, attack: str = "crescendo:5") -> Plan:
    """Eight behaviours of a secret, asked of a model that says it at once."""
    asked = tuple(
        msgspec.structs.replace(p, cluster=p.id.partition("~")[0])
        for p in probes(8)
        if p.technique == "planted_secret"
    )
    made = declare(
        msgspec.structs.replace(plan(("scripted:leaky",), samples=1, attacks=(attack,)), probes=asked)
    )
    assert isinstance(made.analysis, Analysis)
    if not has_shared_steps:
        return made
    return msgspec.structs.replace(made, analysis=msgspec.structs.replace(made.analysis, steps=msgspec.UNSET))


def same_words(found: Estimates) -> list[str]:
    return [line for line in headline(found).warnings if "word for word" in line]


def test_one_conversation_of_eight_behaviours_is_named(tmp_path: Path) -> None:
    study(tmp_path, leaky(has_shared_steps=True)).run()
    found = read_proven(tmp_path)
    (row,) = found.same_conversations
    assert (row.technique, row.attack) == ("planted_secret", "crescendo:5")
    assert (row.n_same, row.n_distinct, row.n) == (8, 1, 8)
    (line,) = same_words(found)
    assert (
        "planted_secret under crescendo:5: 8 of 8 behaviours" in line and "are only 1 conversation," in line
    )


def test_behaviours_with_steps_of_their_own_are_no_repeats(tmp_path: Path) -> None:
    study(tmp_path, leaky(has_shared_steps=False)).run()
    found = read_proven(tmp_path)
    assert not found.same_conversations and not same_words(found)


def test_an_attack_without_steps_has_none(tmp_path: Path) -> None:
    study(tmp_path, leaky(has_shared_steps=False, attack="direct")).run()
    assert not read_proven(tmp_path).same_conversations


@pytest.mark.parametrize(("n_same", "n_distinct", "is_warned"), [(2, 1, False), (8, 4, True)])
def test_a_warning_needs_more_than_a_few(
    tmp_path: Path, n_same: int, n_distinct: int, is_warned: bool
) -> None:
    study(tmp_path, leaky(has_shared_steps=False)).run()
    found = read_proven(tmp_path)
    row = SameConversations(found.models[0].id, "crescendo:5", "planted_secret", n_same, n_distinct, 30)
    assert bool(same_words(msgspec.structs.replace(found, same_conversations=(row,)))) is is_warned


def test_estimates_of_a_release_that_looked_for_none_are_still_read(tmp_path: Path) -> None:
    study(tmp_path, leaky(has_shared_steps=True)).run()
    path = tmp_path / "estimates.json"
    stored = msgspec.json.decode(path.read_bytes())
    assert stored.pop("same_conversations")
    path.write_bytes(msgspec.json.encode(stored))
    assert read_proven(tmp_path).same_conversations == ()
