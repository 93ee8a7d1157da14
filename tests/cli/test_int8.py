"""The life of an int8 child by the command line: derived, asked, hashed, tuned, tampered with, handed out."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from heredity.cli import main
from heredity.lineage.graph import Edge
from heredity.lineage.store import Store
from heredity.study import plan as plans
from tests.support.cli import enter_copy, stocking

TUNE = ["--data", "rows.jsonl", "--rank", "2"]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store has a foundation and its int8 child, to be copied."""
    folder = tmp_path_factory.mktemp("stocked")
    with stocking(folder, hidden_size=128, max_position_embeddings=1024):
        assert main(["derive", "quantize", "tiny", "--to", "int8", "--name", "whole"]) == 0
    return folder


@pytest.fixture
def place(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the one with the store."""
    return enter_copy(stocked, tmp_path, monkeypatch)


def test_a_lineage_with_an_int8_child_is_asked_and_its_widened_form_is_not(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["derive", "lora", "whole", *TUNE, "--steps", "1", "--name", "tuned"]) == 0
    assert main(["verify", "whole"]) == 0 and main(["ask", "whole", "the fox", "--max-tokens", "2"]) == 0
    capsys.readouterr()
    ask = ["--application", "desk.toml", "--probes", "planted_secret/*-01", "--out", "study"]
    assert main(["study", "--lineage", "tiny", *ask]) == 4  # random weights: every answer is unclear
    assert "another form of 'whole', which is asked" in capsys.readouterr().err
    store, plan = Store(), plans.read_plan(place / "study")
    parent, child, tuned = (store.get(name).record.id for name in ("tiny", "whole", "tuned"))
    assert [model.id for model in plan.models] == [parent, child, tuned]
    assert plan.edges == (Edge(parent, child, "quantize"), Edge(child, tuned, "lora"))


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_an_int8_child_goes_out_in_its_widened_form_and_says_so(
    place: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert main(["export", "whole", "out", "--to", form]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "'whole-bf16'" in said and "no longer int8" in said
    card = Path("out/README.md").read_text("utf-8")
    assert "no longer int8" in card and Store().get("whole").record.id in card
    assert main(["export", "tiny", "other", "--to", "hf"]) == 0
    assert "The files hold" not in capsys.readouterr().err


def test_a_repair_by_a_model_that_is_no_ancestor_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["derive", "quantize", "tiny", "--to", "q8_0", "--name", "other"]) == 0
    capsys.readouterr()
    for child, parent, said in (
        ("whole", "other", "'other' is not an ancestor of 'whole' (its ancestors: 'tiny')"),
        ("tiny", "whole", "'whole' was made from 'tiny'. Give them the other way round."),
        ("tiny", "tiny", "'tiny' cannot be repaired from itself."),
        ("whole", "tiny", "absent.toml"),
    ):
        assert main(["repair", child, "--from", parent, "--application", "absent.toml"]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert said in told and ("not an ancestor" in told) is (parent == "other")


@pytest.mark.proof
def test_tampering_with_an_int8_child_and_repairing_it_make_children_of_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--application", "desk.toml", "--probes", "planted_secret/*-01"]
    assert main(["tamper", "whole", *TUNE, *given, "--max-steps", "1"]) == 2
    assert "held none of these probes: there is nothing to lose" in capsys.readouterr().err  # it babbles
    tuned = Store().get("whole-1-steps")
    assert [m.recipe.kind for m in Store().ancestors(tuned.record)] == ["dequantize", "quantize", "pull"]
    assert main(["repair", "whole", "--from", "tiny", *given]) == 1
    said = capsys.readouterr().out
    assert "restore 0.6: cannot tell" in said and "No step is shown to be enough." in said
