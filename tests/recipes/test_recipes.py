"""A recipe by its name and flat settings is the one of its class, and what there is not is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest

import heredity as h
from heredity import recipes
from heredity.cli.derive import recipe_options as settings_options
from heredity.core import registry
from heredity.core.errors import BadInput, UnknownName, UsageError
from heredity.recipes import HASHED_AS, to_current
from heredity.recipes.distill import Distill
from heredity.recipes.lora import Lora
from heredity.recipes.prune import Prune
from heredity.train.data.chat import Dialogue, make_data
from tests.support.errors import raises

DATA = h.Data.of("made", [("the fox", "jumps"), ("the dog", "sleeps")])


def test_a_named_recipe_is_that_of_its_class() -> None:
    found = h.recipe("lora", data=DATA, steps=3, lr=2e-4, rank=4, use_rslora=False, name="mine", watch=print)
    assert found == Lora(DATA, steps=3, lr=2e-4, rank=4, use_rslora=False)
    assert isinstance(found, Lora) and found.watch is print
    assert found.name == "mine"
    assert h.recipe("prune", layers=2) == Prune(2)


def test_what_is_not_given_is_the_recipes_own_default() -> None:
    found = h.recipe("distill", data=DATA, steps=2)
    assert found == dataclasses.replace(Distill(DATA), steps=2) and Distill(DATA).lr == 5e-5


@pytest.mark.parametrize("kind", recipes.derivable())
def test_every_setting_of_the_command_line_is_one_here(kind: str) -> None:
    from heredity.cli import derive

    of = registry.load("recipes", kind).DERIVES
    flags = {option.name for option in derive.recipe_options(of)} - {"columns"}
    assert flags == {each.name.removeprefix("is_") for each in dataclasses.fields(of) if each.compare}


@pytest.mark.parametrize("kind", recipes.derivable())
def test_every_renamed_setting_is_one_that_the_recipe_has(kind: str) -> None:
    of = registry.load("recipes", kind).DERIVES
    names, renamed = {each.name for each in dataclasses.fields(of)}, HASHED_AS.get(kind, {})
    assert names >= renamed.keys()
    assert not names & set(renamed.values()), "a name of today is another setting's first name"


def test_a_setting_is_recorded_under_its_first_name_alone() -> None:
    today = h.recipe("lora", data=DATA, lr=1e-3, batch_size=2, target_modules=("q_proj",))
    recorded = today.settings()
    assert (recorded["rate"], recorded["batch"], recorded["targets"]) == (1e-3, 2, ("q_proj",))
    assert "lr" not in recorded
    assert to_current("lora", recorded)["lr"] == 1e-3
    with raises(UnknownName, "unknown-name", mentions=["rate"]):
        h.recipe("lora", data=DATA, rate=1e-3)


def test_a_path_is_read_as_the_data_that_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "the fox", "completion": "jumps"}\n')
    for given in (path, str(path)):
        made = Lora(data=given, steps=40)
        assert (
            made == Lora(h.Data.read(path), steps=40) and made.examples.dialogues[0].where == "rows.jsonl:1"
        )
    asked = h.recipe("instruct", data=path)
    assert asked.settings()["data"] == h.Data.read(path, has_answers=False).settings
    with raises(BadInput, "unreadable-file", mentions=["nothing.jsonl"]):
        Lora(data=tmp_path / "nothing.jsonl")


def test_a_flag_of_before_a_rename_is_refused() -> None:
    command = click.Command("lora", params=[*settings_options(Lora)])
    assert "--lr" in command.get_help(click.Context(command))
    with pytest.raises(click.NoSuchOption, match="--rate"):
        command.make_context("lora", ["--data", "x", "--rate", "0.5"])


def test_what_there_is_not_or_is_left_out_is_said() -> None:
    with raises(UnknownName, "unknown-name", mentions=["lora"]):
        h.recipe("loro", data=DATA)
    with raises(UnknownName, "unknown-name", mentions=["steps"]):
        h.recipe("lora", data=DATA, step=3)
    with raises(UsageError, "missing-key", mentions=["ablate"]):
        h.recipe("ablate")
    with raises(UsageError, "bad-setting", mentions=["batch_size", "1"]):
        h.recipe("lora", data=DATA, batch_size=0)
    for kind in ("lora", "distill"):
        with raises(UsageError, "bad-usage", mentions=["asked", kind]):
            h.recipe(kind, data=h.Data.of("asked", [("the fox", "jumps"), "the dog"]))
    h.recipe("distill", data=h.Data.of("asked", ["the dog"]), is_on_policy=True)
    h.recipe("instruct", data=h.Data.of("asked", ["the dog"]))


def test_data_that_is_made_here_is_that_of_dialogues(tmp_path: Path) -> None:
    said = [Dialogue((h.Message("user", "a"), h.Message("assistant", "b")), "x:1"),
            Dialogue((h.Message("user", "c"),), "x:2")]  # fmt: skip
    assert h.Data.of("x", [("a", "b"), "c"]) == make_data("x", said)
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    assert h.Data.read(tmp_path / "rows.csv").digest == h.Data.of("x", [("a", "b")]).digest
