"""`heredity plan`: a plan from a recipe alone, and the mistakes that can be made with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.cli import main

RECIPE = 'size = "1B"\ncontext = 4096\nbatch = 1_048_576\n'


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "base.toml"
    path.write_text(RECIPE)
    return str(path)


def test_a_plan_is_printed_without_a_corpus(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--vocabulary", "65536", "--gpus", "64"]) == 0
    said = capsys.readouterr().out
    for word in (
        "feed-forward",
        "masters",
        "hsdp",
        "time",
        "kWh (PUE 1.2)",
        "MFU     40% stated",
        "64 x NVIDIA",
    ):
        assert word in said


def test_json_holds_every_figure(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--vocabulary", "65536", "--gpus", "8", "--price", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rehearsed"] is None
    plan = found["plan"]
    assert plan["dollars"] == pytest.approx(plan["gpu_hours"])
    assert plan["best"] in plan["ways"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "holds no corpus yet"),
        (["--vocabulary", "65536", "--gpu", "h10"], "Did you mean 'h100'"),
        (["--vocabulary", "65536", "--gpu", "rtx4090", "--reserve", "0.9"], "It would fit on"),
        (["--vocabulary", "65536", "--gpus", "1024"], "at most --gpus 256"),
        (["--vocabulary", "65536", "--mfu", "2"], "mfu must lie"),
        (["other.toml"], "of one recipe"),
    ],
)
def test_a_mistake_is_one_line(
    recipe: str, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe, *more]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_a_law_needs_models_of_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--fit", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
