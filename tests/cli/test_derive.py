"""`heredity derive`: flags are the recipe's settings, a mistake is one line, the child is in the lineage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.cli import main
from heredity.lineage.store import Store
from tests.support.tiny_models import make_model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    Store().pull(str(make_model(tmp_path / "tiny", "llama")))
    rows = [{"prompt": f"fox {i}", "completion": "jumps over"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_child_is_made_named_and_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--steps", "2", "--rank", "2"]
    assert main([*command, "--name", "tuned", "--targets", "q_proj,v_proj"]) == 0
    assert "tuned" in capsys.readouterr().out
    record = Store().get("tuned").record
    assert record.recipe.settings["targets"] == ["q_proj", "v_proj"] and record.recipe.settings["rank"] == 2
    assert main(["models", "--tree"]) == 0
    drawn = capsys.readouterr().out
    assert "tuned" in drawn and "lora, adapter" in drawn and "tiny" in drawn


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["lora", "tiny"], "--data"),
        (["lora", "nobody", "--data", "rows.jsonl"], "nobody"),
        (["lorra", "tiny"], "Did you mean 'lora'"),
        (["lora", "tiny", "--data", "rows.jsonl", "--rank", "0"], "rank 0"),
        (["lora", "tiny", "--data", "rows.jsonl", "--targets", "q_prj"], "q_prj"),
        (["lora", "tiny", "--data", "rows.jsonl", "--rate", "99"], "rate"),
        (["lora", "tiny", "--data", "nothing.jsonl"], "nothing.jsonl"),
        (["lora", "tiny", "--data", "rows.jsonl", "--columns", "prompt"], "NAME=COLUMN"),
        (["lora", "tiny", "--data", "rows.jsonl", "--max-tokens", "2"], "longer than 2 tokens"),
        (["lora", "tiny", "--data", "rows.jsonl", "--decay", "nan"], "decay must be a number, and is nan"),
        (["lora", "tiny", "--data", "rows.jsonl", "--warmup", "nan"], "warmup must be a number"),
        (["lora", "tiny", "--data", "rows.jsonl", "--epochs", "inf"], "epochs must be a number, and is inf"),
        (["lora", "tiny", "--data", "rows.jsonl", "--memory", "nan"], "memory must be a number"),
        (["lora", "tiny", "--data", "rows.jsonl", "--alpha", "nan"], "alpha must be a number"),
        (
            ["instruct", "tiny", "tiny", "--data", "rows.jsonl", "--temperature", "nan"],
            "temperature must be a",
        ),
        (
            ["lora", "tiny", "--data", "rows.jsonl", "--steps", "1", "--decay", "1e300"],
            "Weights are NaN or infinite after step 0",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_recorded(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(place)
    before = len(Store().models())
    assert main(["derive", *flags]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1] and "Traceback" not in "\n".join(err)
    assert len(Store().models()) == before


def test_two_files_have_their_columns_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [f"the dog number {i},the oak tree number {i}" for i in range(8)]
    (place / "pairs.csv").write_text("\n".join(["refused,granted", *pairs]))
    both = ["--harmful", str(place / "pairs.csv"), "--harmless", str(place / "pairs.csv")]
    command = ["derive", "ablate", "tiny", *both, "--dtype", "float32", "--columns"]
    assert main([*command, "prompt=refused"]) == 2
    assert "8 requests are in both sets ('the dog number 0')" in capsys.readouterr().err
    assert main([*command, "harmful=refused,harmless=granted"]) == 0
    settings = Store().get("tiny-ablated").record.recipe.settings
    assert settings["harmful"]["digest"] != settings["harmless"]["digest"]


def test_a_parent_whose_files_changed_has_no_child(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Store().get("tiny").folder
    config = folder / "config.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + " ")
    assert main(["derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--steps", "1"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_flag_that_is_left_out_has_its_default(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store().pull(str(make_model(place / "other", "llama")))
    assert main(["derive", "merge", "tiny", "other", "--name", "both"]) == 0
    (place / "asked.jsonl").write_text(json.dumps({"prompt": "fox"}))
    command = ["derive", "instruct", "tiny", "other", "--data", str(place / "asked.jsonl"), "--longest", "1"]
    assert main(command) == 2 and "finished none of 1" in capsys.readouterr().err
    assert main([*command, "--system", ""]) == 2 and "--system" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["quantize", "tiny", "tiny"], "takes one parent, not 2"),
        (["guard", "tiny", "tiny"], "takes one parent, not 2"),
        (["merge", "tiny", "tiny", "--weights", "nan,1"], "weights are numbers"),
        (["merge", "tiny", "tiny", "--weights", "1,-1"], "sum to nothing"),
        (["merge", "tiny", "untied"], "tie_word_embeddings"),
        (["quantize", "biased"], "biases"),
        (["quantize", "odd"], "activation 'relu'"),
        (["quantize", "tiny", "--name", "x\udcff"], "not UTF-8"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_recorded(
    place: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    made = {
        "untied": {"tie_word_embeddings": False},
        "biased": {"attention_bias": True},
        "odd": {"hidden_act": "relu"},
    }
    for name, settings in made.items():
        if name in flags:
            Store().pull(str(make_model(place / name, "llama", **settings)))
    before = len(Store().models())
    assert main(["derive", *flags]) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown and len(Store().models()) == before


def test_any_name_can_be_read_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "quantize", "tiny", "--to", "f16", "--name", "v1:q8"]) == 0
    assert main(["show", "v1:q8"]) == 0 and "leads outside" not in capsys.readouterr().err
    assert main(["derive", "guard", "tiny", "--words", "\U0001f642 be safe"]) == 0


def test_a_second_name_of_the_same_child_is_not_dropped_in_silence(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["derive", "quantize", "tiny", "--to", "int8", "--name"]
    assert main([*command, "one"]) == 0
    assert "already exists" not in capsys.readouterr().err
    assert main([*command, "two"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "already exists as 'one'" in said and "'two' is not used" in said and "Use one, or its id" in said
    assert [model.name for model in Store().models()] == ["one", "tiny"]
    assert main(["verify", "one"]) == 0 and main(["show", "one"]) == 0
    assert "int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny", "another model"),
        ("ID", "another model"),
        ("gemma-3-270m", "of the catalogue"),
        ("scripted:safe", "of the kind 'scripted:'"),
        ("llamacpp:tiny", "of the kind 'llamacpp:'"),
        ("one\nroot  0123456789ab  pull, gguf", "visible characters"),
        ("red\x1b[31m", "visible characters"),
        ("   ", "visible characters"),
        ("n" * 121, "at most 120"),
    ],
)
def test_a_name_that_is_taken_or_finds_nothing_is_refused_before_anything_is_made(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (held,) = Store().models()
    name = held.id[:8] if name == "ID" else name
    command = ["derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--steps", "1", "--name", name]
    assert main(command) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert [model.id for model in Store().models()] == [held.id]


def test_the_same_command_finds_its_child_by_the_name_it_gave(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--name", "mine", "--steps"]
    assert main([*command, "1"]) == 0 and main([*command, "1"]) == 0
    assert main([*command, "2"]) == 2
    assert "'mine' already names another model" in " ".join(capsys.readouterr().err.split())
    assert [model.name for model in Store().models()] == ["mine", "tiny"]


def test_a_training_that_does_not_fit_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["derive", "finetune", "tiny", "--data", str(place / "rows.jsonl"), "--memory", "0.0001"]
    assert main(command) == 2
    assert "GiB are there" in " ".join(capsys.readouterr().err.split())
    assert [model.name for model in Store().models()] == ["tiny"]
