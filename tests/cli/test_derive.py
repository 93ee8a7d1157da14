"""`heredity derive`: flags are the recipe's settings, a mistake is one line, the child is in the lineage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.cli import main
from heredity.lineage.store import Store
from tests.support.errors import check_refused, run_here
from tests.support.tiny_models import make_model

ROWS = ("--data", "rows.jsonl")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    Store().pull(str(make_model(tmp_path / "tiny", "llama")))
    rows = [{"prompt": f"fox {i}", "completion": "jumps over"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_child_is_made_named_and_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--steps", "2", "--rank", "2"]
    assert main([*command, "--name", "tuned", "--target-modules", "q_proj,v_proj"]) == 0
    assert "tuned" in capsys.readouterr().out
    record = Store().get("tuned").record
    assert record.recipe.settings["targets"] == ["q_proj", "v_proj"] and record.recipe.settings["rank"] == 2
    assert main(["models", "--tree"]) == 0
    drawn = capsys.readouterr().out
    assert "tuned" in drawn and "lora, adapter" in drawn and "tiny" in drawn


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["lora", "tiny"], "", ["--data"]),
        (["lora", "nobody", *ROWS], "unknown-name", ["nobody"]),
        (["lorra", "tiny"], "unknown-name", ["lorra", "lora"]),
        (["lora", "tiny", *ROWS, "--rank", "0"], "bad-usage", ["rank", 0]),
        (["lora", "tiny", *ROWS, "--target-modules", "q_prj"], "unknown-name", ["q_prj"]),
        (["lora", "tiny", *ROWS, "--lr", "99"], "bad-usage", ["lr", 99]),
        (["lora", "tiny", "--data", "nothing.jsonl"], "unreadable-file", ["nothing.jsonl"]),
        (
            ["lora", "tiny", *ROWS, "--columns", "prompt"],
            "bad-usage",
            ["--columns", "prompt"],
        ),
        (
            ["lora", "tiny", *ROWS, "--max-length", "2"],
            "bad-usage",
            [8, 2, "max_length"],
        ),
        (["lora", "tiny", *ROWS, "--weight-decay", "nan"], "bad-setting", ["weight_decay", "nan"]),
        (["lora", "tiny", *ROWS, "--warmup", "nan"], "bad-setting", ["warmup", "nan"]),
        (["lora", "tiny", *ROWS, "--epochs", "inf"], "bad-setting", ["epochs", "inf"]),
        (["lora", "tiny", *ROWS, "--memory", "nan"], "bad-setting", ["memory", "nan"]),
        (["lora", "tiny", *ROWS, "--alpha", "nan"], "bad-setting", ["alpha", "nan"]),
        (
            ["instruct", "tiny", "tiny", *ROWS, "--temperature", "nan"],
            "bad-setting",
            ["temperature", "nan"],
        ),
        (
            ["lora", "tiny", *ROWS, "--steps", "1", "--weight-decay", "1e300"],
            "diverged",
            [0],
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_recorded(
    place: Path, flags: list[str], code: str, named: list[object]
) -> None:
    before = len(Store().models())
    check_refused(run_here("derive", *flags, cwd=place), code, named, after_progress=True)
    assert len(Store().models()) == before


def test_two_files_have_their_columns_each(place: Path) -> None:
    pairs = [f"the dog number {i},the oak tree number {i}" for i in range(8)]
    (place / "pairs.csv").write_text("\n".join(["refused,granted", *pairs]))
    both = ["--harmful", str(place / "pairs.csv"), "--harmless", str(place / "pairs.csv")]
    command = ["derive", "ablate", "tiny", *both, "--dtype", "float32", "--columns"]
    refused = run_here(*command, "prompt=refused")
    check_refused(refused, "bad-usage", [8, "the dog number 0"], after_progress=True)
    assert main([*command, "harmful=refused,harmless=granted"]) == 0
    settings = Store().get("tiny-ablated").record.recipe.settings
    assert settings["harmful"]["digest"] != settings["harmless"]["digest"]


def test_a_parent_whose_files_changed_has_no_child(place: Path) -> None:
    folder = Store().get("tiny").folder
    config = folder / "config.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + " ")
    done = run_here("derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--steps", "1")
    check_refused(done, "damaged", ["tiny", "config.json"], after_progress=True)


def test_a_flag_that_is_left_out_has_its_default(place: Path) -> None:
    Store().pull(str(make_model(place / "other", "llama")))
    assert main(["derive", "merge", "tiny", "other", "--name", "both"]) == 0
    (place / "asked.jsonl").write_text(json.dumps({"prompt": "fox"}))
    data = ["--data", str(place / "asked.jsonl"), "--max-new-tokens", "1"]
    command = ["derive", "instruct", "tiny", "other", *data]
    check_refused(run_here(*command), "bad-usage", [1, "max_new_tokens"], after_progress=True)
    check_refused(run_here(*command, "--system", ""), "", ["--system"])


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["quantize", "tiny", "tiny"], "bad-usage", ["quantize", 2]),
        (["guard", "tiny", "tiny"], "bad-usage", ["guard", 2]),
        (["merge", "tiny", "tiny", "--weights", "nan,1"], "bad-usage", ["weights", "nan,1"]),
        (["merge", "tiny", "tiny", "--weights", "1,-1"], "bad-usage", ["weights", "1,-1"]),
        (["merge", "tiny", "untied"], "bad-usage", ["tiny", "untied", "tie_word_embeddings"]),
        (["quantize", "biased"], "refused", ["biases"]),
        (["quantize", "odd"], "unavailable", ["activation", "relu"]),
        (["quantize", "tiny", "--name", "x\udcff"], "", ["--name", "UTF-8"]),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_recorded(
    place: Path, flags: list[str], code: str, named: list[object]
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
    check_refused(run_here("derive", *flags), code, named, after_progress=True)
    assert len(Store().models()) == before


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
        ("gemma-3-270m", "catalogue"),
        ("scripted:safe", "scripted:"),
        ("llamacpp:tiny", "llamacpp:"),
        ("one\nroot  0123456789ab  pull, gguf", 120),
        ("red\x1b[31m", 120),
        ("   ", 120),
        ("n" * 121, 120),
    ],
)
def test_a_name_that_is_taken_or_finds_nothing_is_refused_before_anything_is_made(
    place: Path, name: str, said: object
) -> None:
    (held,) = Store().models()
    name = held.id[:8] if name == "ID" else name
    command = ["derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--steps", "1", "--name", name]
    check_refused(run_here(*command), "bad-usage", [said], after_progress=True)
    assert [model.id for model in Store().models()] == [held.id]


def test_the_same_command_finds_its_child_by_the_name_it_gave(place: Path) -> None:
    command = ["derive", "lora", "tiny", "--data", str(place / "rows.jsonl"), "--name", "mine", "--steps"]
    assert main([*command, "1"]) == 0 and main([*command, "1"]) == 0
    check_refused(run_here(*command, "2"), "bad-usage", ["mine"], after_progress=True)
    assert [model.name for model in Store().models()] == ["mine", "tiny"]


def test_a_training_that_does_not_fit_is_one_line(place: Path) -> None:
    command = ["derive", "finetune", "tiny", "--data", str(place / "rows.jsonl"), "--memory", "0.0001"]
    check_refused(run_here(*command), "out-of-memory", ["finetune"], after_progress=True)
    assert [model.name for model in Store().models()] == ["tiny"]


def test_the_answers_of_a_model_train_another_student(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from heredity.core.records import Reply
    from heredity.engines.torch.engine import TorchEngine

    Store().pull(str(make_model(place / "other", "llama", intermediate_size=96)))
    no = "I'm sorry, but I can't help with that."
    monkeypatch.setattr(
        TorchEngine,
        "reply",
        lambda engine, asked: (Reply(r.key, "", no if r.key == 1 else "a fox jumps over it") for r in asked),
    )
    (place / "asked.csv").write_text("prompt\n" + "\n".join(f"fox {i}" for i in range(4)))
    steps, data = ["--steps", "1", "--name"], ["--data", str(place / "asked.csv")]
    assert main(["derive", "instruct", "tiny", "other", *data, "--leave-out", "nothing", *steps, "all"]) == 0
    shown = capsys.readouterr()
    assert "the teacher writes" in shown.err and "answers: 4 learned of 4" in shown.err
    both = ["--leave-out", "refusals", "--leave-out", "unfinished"]
    assert main(["derive", "finetune", "tiny", "--answers", "all", *both, *steps, "clean"]) == 0
    assert "answers: 3 learned of 4" in capsys.readouterr().err
    record = Store().get("clean").record
    assert record.parents == (Store().get("tiny").record.id, Store().get("other").record.id)
    assert record.recipe.settings["leave_out"] == ["refusals", "unfinished"]
    assert main(["show", "all"]) == 0 and "answers.jsonl" in capsys.readouterr().out
    assert main(["models"]) == 0 and "answers" in capsys.readouterr().out
    lora = ["derive", "lora", "tiny", "--rank", "2"]
    check_refused(run_here(*lora, "--answers", "clean"), "bad-usage", ["clean"], after_progress=True)
    check_refused(run_here(*lora, "--answers", "all", *data), "", ["--data", "--answers"])
    check_refused(
        run_here(*lora, *data, "--leave-out", "nothing", "--leave-out", "refusals"), "", ["nothing"]
    )
