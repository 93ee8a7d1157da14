"""`heredity attacks`: every attack with its variants and its cost."""

from __future__ import annotations

import json

import pytest

from heredity.cli import main
from heredity.redteam import attacks


def test_every_attack_is_listed_with_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attacks", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(attacks.names())
    assert all(row["purpose"] and row["queries"] for row in found.values())
    assert found["encoding"]["variants"][0] == "base64"
    for name, row in found.items():
        for variant in row["variants"]:
            assert attacks.load(f"{name}:{variant}").parts[0].variant == variant


def test_the_table_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attacks"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in attacks.names())


@pytest.mark.parametrize("verb", ["attacks", "study"])
def test_the_help_says_that_an_attack_may_be_for_some_techniques(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    assert "@TECHNIQUE" in capsys.readouterr().out
