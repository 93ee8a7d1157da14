"""A recipe by its name and flat settings is the one of its class, and what there is not is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import heredity as h
from heredity import recipes
from heredity.core import registry
from heredity.core.errors import UnknownName, UsageError
from heredity.recipes._training_run import Training
from heredity.recipes.distill import Distill
from heredity.recipes.lora import Lora
from heredity.recipes.prune import Prune
from heredity.train.data.chat import Dialogue, of
from tests.support.errors import raises

DATA = h.Data.of("made", [("the fox", "jumps"), ("the dog", "sleeps")])


def test_a_named_recipe_is_that_of_its_class() -> None:
    found = h.recipe(
        "lora", data=DATA, steps=3, rate=2e-4, rank=4, stabilized=False, name="mine", watch=print
    )
    training = Training(steps=3, rate=2e-4)
    assert found == Lora(DATA, training, rank=4, is_stabilized=False) and found.watch is print
    assert found.name == "mine"
    assert h.recipe("prune", layers=2) == Prune(2)


def test_what_is_not_given_is_the_recipes_own_default() -> None:
    assert h.recipe("distill", data=DATA, steps=2).training == Training(
        steps=2, rate=Distill(DATA).training.rate
    )


@pytest.mark.parametrize("kind", recipes.derivable())
def test_every_setting_of_the_command_line_is_one_here(kind: str) -> None:
    from heredity.cli import _settings

    of = registry.load("recipes", kind).DERIVES
    flags = {option.name for option in _settings.options(of)} - {"columns"}
    fields = [each for each in dataclasses.fields(of) if each.compare]
    assert flags == {name for each in fields for name in recipes._settings_of(each)}


def test_what_there_is_not_or_is_left_out_is_said() -> None:
    with raises(UnknownName, "unknown-name", mentions=["lora"]):
        h.recipe("loro", data=DATA)
    with raises(UnknownName, "unknown-name", mentions=["steps"]):
        h.recipe("lora", data=DATA, step=3)
    with raises(UsageError, "setting-missing", mentions=["ablate"]):
        h.recipe("ablate")
    with raises(UsageError, "bad-setting", mentions=["batch", "1"]):
        h.recipe("lora", data=DATA, batch=0)


def test_data_that_is_made_here_is_that_of_dialogues(tmp_path: Path) -> None:
    said = [Dialogue((h.Message("user", "a"), h.Message("assistant", "b")), "x:1"),
            Dialogue((h.Message("user", "c"),), "x:2")]  # fmt: skip
    assert h.Data.of("x", [("a", "b"), "c"]) == of("x", said)
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    assert h.Data.read(tmp_path / "rows.csv").digest == h.Data.of("x", [("a", "b")]).digest
