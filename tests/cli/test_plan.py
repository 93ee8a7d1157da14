"""`heredity plan`: a plan from a recipe alone, and the mistakes that can be made with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.lineage.store import Store
from tests.support.errors import check_refused, run_here

pytestmark = pytest.mark.slow  # torch counts the FLOPs
RECIPE = 'size = "1B"\ncontext = 4096\nbatch_size = 1_048_576\n'


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # whatever the width that the tests are run in


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "base.toml"
    path.write_text(RECIPE)
    return str(path)


def test_a_plan_is_printed_without_a_corpus(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--vocab-size", "65536", "--gpus", "64"]) == 0
    said = capsys.readouterr().out
    for word in (
        "feed-forward",
        "masters",
        "hsdp",
        "time",
        "device hours",
        "MFU     40% stated",
        "64 x NVIDIA",
    ):
        assert word in said


def test_looks_at_held_out_text_are_said_where_they_count(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for checks, said in ((20, ""), (1_000_000, "of the time is validation)")):
        Path(recipe).write_text(f"{RECIPE}evaluations = {checks}\n")
        assert main(["plan", recipe, "--vocab-size", "65536", "--gpus", "64"]) == 0
        assert ("validation" in (told := capsys.readouterr().out)) == bool(said) and said in told


def test_a_continued_base_is_planned_from_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its recipe names neither size nor shape: the base sets them."""
    pytest.importorskip("torch")
    from tests.support.tiny_models import make_model

    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    made = Store(tmp_path / "store").pull(str(make_model(tmp_path / "tiny", "llama")))
    (tmp_path / "more.toml").write_text("tokens = 65536\nbatch_size = 1024\ncontext = 128\n")
    asked = ["plan", str(tmp_path / "more.toml"), "--vocab-size", "320", "--json"]
    assert main([*asked, "--from", made.record.name]) == 0
    shape = json.loads(capsys.readouterr().out)["plan"]["work"]["shape"]
    config = json.loads((made.folder / "config.json").read_text())
    assert (shape["layers"], shape["width"]) == (config["num_hidden_layers"], config["hidden_size"])
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["work"]["shape"]["width"] != shape["width"]


@pytest.mark.parametrize("text", ["[[child]]\nname = 'a'\n", "models = ['a']\nprobes = 'core'\n"])
def test_the_plan_of_a_study_or_a_lineage_is_named_with_its_verb(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    path = tmp_path / "plan.toml"
    check_refused(run_here("plan", str(path)), "bad-input", [f"heredity power --study {path}"])


def test_json_holds_every_figure(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--vocab-size", "65536", "--gpus", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rehearsed"] is None
    plan = found["plan"]
    assert plan["gpu_hours"] == pytest.approx(8 * plan["seconds"] / 3600)
    assert plan["best"] in plan["ways"]


MASKED = 'objective = "masked"\nsize = "150M"\ncontext = 1024\nbatch_size = 1_048_576\n'
PAIRS = (
    'objective = "contrastive"\nsize = "150M"\ncaption_tokens = 77\npatch_size = 16\n'
    "pairs = 10_000_000\nbatch_size = 4096\n"
)
OF_PAIRS = ("--vocab-size", "49408", "--image-size", "224")


@pytest.mark.parametrize(
    ("text", "more", "unit"),
    [
        (MASKED, ("--vocab-size", "50368"), "token"),
        (MASKED + 'architecture = "bert"\n', ("--vocab-size", "50368"), "token"),
        (PAIRS, OF_PAIRS, "pair"),
        (PAIRS + 'architecture = "siglip"\n', OF_PAIRS, "pair"),
    ],
)
def test_other_kinds_have_the_same_table_and_keys(
    recipe: str, text: str, more: tuple[str, ...], unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe, "--vocab-size", "65536", "--gpus", "8", "--json"]) == 0
    causal = json.loads(capsys.readouterr().out)["plan"]
    Path(recipe).write_text(text)
    assert main(["plan", recipe, *more, "--gpus", "8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan.keys() == causal.keys() and plan["best"].keys() == causal["best"].keys()
    assert plan["work"].keys() == causal["work"].keys() and plan["unit"] == unit
    assert plan["parameters"].keys() == causal["parameters"].keys()
    assert plan["best"]["memory"].keys() == causal["best"]["memory"].keys()
    assert main(["plan", recipe, *more, "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    for word in (
        f"FLOPs per {unit}",
        f"{unit}s",
        "recompute",
        f"{unit}s/s",
        "device hours",
        "run it",
        "hsdp",
    ):
        assert word in said


@pytest.mark.parametrize(
    ("text", "more", "code", "named"),
    [
        (PAIRS, [], "bad-input", ["base.toml", "--vocab-size 49408", "--image-size 224"]),
        (PAIRS, ["--gpus", "8192", *OF_PAIRS], "bad-usage", ["4,096", "8,192", "--gpus 4096"]),
        (
            PAIRS,
            ["--vocab-size", "49408", "--image-size", "225"],
            "bad-input",
            ["base.toml", 225, "patch", 16],
        ),
        (
            PAIRS,
            [*OF_PAIRS, "--gpu", "rtx4090", "--reserve", "0.9"],
            "out-of-memory",
            ["NVIDIA GeForce RTX 4090"],
        ),
        (MASKED, OF_PAIRS, "bad-usage", ["--image-size", "masked"]),
    ],
)
def test_a_mistake_with_another_kind_is_one_line(
    recipe: str, text: str, more: list[str], code: str, named: list[object]
) -> None:
    Path(recipe).write_text(text)
    check_refused(run_here("plan", recipe, *more), code, named)


@pytest.mark.parametrize(
    ("more", "code", "named"),
    [
        ([], "bad-input", ["base.toml", "corpus"]),
        (["--vocab-size", "65536", "--gpu", "h10"], "unknown-name", ["h10", "h100"]),
        (
            ["--vocab-size", "65536", "--gpu", "rtx4090", "--reserve", "0.9"],
            "out-of-memory",
            ["NVIDIA GeForce RTX 4090"],
        ),
        (["--vocab-size", "65536", "--gpus", "1024"], "bad-usage", ["--gpus 256"]),
        (["--vocab-size", "65536", "--mfu", "2"], "bad-setting", ["mfu", 2]),
        (["other.toml"], "bad-usage", [2, "--fit"]),
        (["--vocab-size", "90000000000"], "bad-input", ["base.toml", "90,000,000,000"]),
    ],
)
def test_a_mistake_is_one_line(recipe: str, more: list[str], code: str, named: list[object]) -> None:
    check_refused(run_here("plan", recipe, *more), code, named)


def test_a_law_needs_models_of_the_store() -> None:
    check_refused(run_here("plan", "--fit", "nobody"), "unknown-name", ["nobody"])
