"""The first how-to: from an adapter that PEFT wrote, in TRL's folder, to what it changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from heredity.cli import main
from heredity.deploy.export import ExportCard, bom, write_card
from heredity.lineage.graph import Edge
from heredity.lineage.store import Store
from heredity.study import plan as plans
from heredity.study.study import Study
from tests.support.cli import DESK
from tests.support.documents import ROOT
from tests.support.errors import check_refused, run_here
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import make_model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and the folder that TRL leaves of an adapter over it."""
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    base = make_model(tmp_path / "base", "llama")
    out = make_adapter(
        base, tmp_path / "out" / "my-adapter", strength=0.003, target_modules="all-linear", use_dora=True
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, out / name)
    for name in ("training_args.bin", "checkpoint-10/optimizer.pt", "runs/events.out"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    Path("desk.toml").write_text(DESK + "\n[decoding]\nmax_tokens = 2\n")
    return tmp_path


def test_three_commands_lead_from_an_adapter_to_the_study_of_its_edge(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "./base"]) == 0
    assert main(["adopt", "out/my-adapter", "--parent", "base"]) == 0
    shown = capsys.readouterr()
    assert "training_args.bin" in shown.err and "checkpoint-10/" in shown.err and "shown" in shown.err
    ask = ["--application", "desk.toml", "--probes", "planted_secret/*-01", "--out", "study"]
    assert main(["study", "--lineage", "base", *ask]) == 0
    store, plan = Store(), plans.read_plan(place / "study")
    parent, child = (store.get(name).record for name in ("base", "my-adapter"))
    assert [model.id for model in plan.models] == [parent.id, child.id]
    assert plan.edges == (Edge(parent.id, child.id, "adopt", descent="lora (shown)"),)
    capsys.readouterr()
    assert main(["models", "--tree"]) == 0
    assert "adopt lora (shown), adapter" in capsys.readouterr().out
    page = (place / "study" / "report.html").read_text("utf-8")
    assert "adopt lora (shown)" in page and ">lora (shown)<" in page, "in the table, and in the figure"
    assert main(["show", "my-adapter"]) == 0
    assert "cosine" in capsys.readouterr().out


def test_the_start_page_and_the_how_to_have_these_commands() -> None:
    how_to = (ROOT / "docs" / "how-to" / "models.md").read_text("utf-8").split("\n## Adopt ")[1]
    for text in (how_to, (ROOT / "docs" / "start" / "ml.md").read_text("utf-8")):
        verbs = re.findall(r"^ {4,}heredity (\w+)", text, re.MULTILINE)
        assert verbs == ["pull", "adopt", "inherit"]


def test_card_and_bill_state_the_evidence(place: Path) -> None:
    assert main(["pull", "./base"]) == 0 and main(["adopt", "out/my-adapter", "--parent", "base"]) == 0
    store = Store()
    descent = [store.get(name).record for name in ("my-adapter", "base")]
    (out := place / "export").mkdir()
    write_card(out, ExportCard("hf", descent[0], descent, (), None))
    card = (out / "README.md").read_text("utf-8")
    assert "adopt lora (shown)" in card.replace("\\", "") and "cosine" in card
    properties = bom([], descent[0], descent)["components"][0]["properties"]  # type: ignore[index]
    (found,) = [each["value"] for each in properties if each["name"] == "heredity:descent"]
    assert found.startswith("shown: ") and "adapter_config.json names base" in found


def test_a_wrong_parent_is_one_line_and_a_name_must_be_free(place: Path) -> None:
    make_model(place / "wide", "llama", intermediate_size=128)
    assert main(["pull", "./base", "./wide"]) == 0
    done = run_here("adopt", "out/my-adapter", "--parent", "wide")
    assert "engine: the fast one (torch)" in done.stderr and "my-adapter over wide: llama" in done.stderr
    assert "  or: vllm:my-adapter or remote:openai:my-adapter@" in done.stderr
    check_refused(done, "refused", mentions=["wide", "[64, 128]"], after_progress=True)
    done = run_here("adopt", "out/my-adapter", "--parent", "base", "--name", "wide")
    check_refused(done, "bad-usage", mentions=["wide"])
    done = run_here("adopt", "out/my-adapter", "--parent", "base", "--kind", "merge")
    check_refused(done, "bad-usage", mentions=["lora", "merge"], after_progress=True)
    assert main(["adopt", "out/my-adapter", "--parent", "base", "--name", "mine"]) == 0
    assert main(["adopt", "out/my-adapter", "--parent", "base", "--name", "mine"]) == 0
    assert [m["name"] for m in json.loads(run_here("models", "--json").stdout)] == ["base", "mine", "wide"]


@pytest.mark.parametrize("command", ["study", "plan", "inherit"])
def test_an_adopted_folder_is_meant_by_its_name_where_it_lies(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    assert main(["pull", "./base"]) == 0 and main(["adopt", "out/my-adapter", "--parent", "base"]) == 0
    monkeypatch.chdir(place / "out")
    if command == "inherit":
        tiny = ["--quick", "--probes", "refusals", "--attack", "direct", "--out", "found"]
        assert main(["inherit", "base", "my-adapter", *tiny]) == 0
    else:
        models = 'models = ["base", "my-adapter"]\napplication = "../desk.toml"\n'
        Path("plan.toml").write_text(models + 'probes = ["planted_secret/*-01"]\n')
        named = ["--model", "base", "--model", "my-adapter", "--application", "../desk.toml"]
        given = ["plan.toml"] if command == "plan" else named
        shown: list[Study] = []
        monkeypatch.setattr("heredity.cli.study._show_size", shown.append)
        assert main(["study", *given, "--dry-run", "--out", "found"]) == 0
        ids = [model.id for model in shown[0].resolved.models]
        assert ids == [Store().get(name).record.id for name in ("base", "my-adapter")]
    names = [model.name for model in Store().models()]
    controls = (":", "-weakened-")
    own = [name for name in names if not any(mark in name for mark in controls)]
    assert own == ["base", "my-adapter"]


def test_an_adapter_that_names_another_model_of_the_store_is_not_a_child_of_this_one(place: Path) -> None:
    make_model(place / "twin", "llama", rms_norm_eps=1e-5)
    assert main(["pull", "./base", "./twin"]) == 0
    wrong = ("adopt", "out/my-adapter", "--parent", "twin")
    check_refused(run_here(*wrong), "refused", ["base", "twin"], after_progress=True)
    declared = run_here(*wrong, "--declared")
    assert declared.returncode == 0 and "names base, not a name of the parent" in declared.stderr
    right = run_here("adopt", "out/my-adapter", "--parent", "base")
    assert "not a name" not in right.stderr
    assert "Another model is named 'my-adapter', too" in right.stderr


def test_a_refusal_names_the_command_that_works(place: Path) -> None:
    done = run_here("adopt", "out/my-adapter", "--parent", "./base")
    check_refused(done, "model-not-pulled", mentions=["heredity pull ./base", "--parent base"])
    done = run_here("pull", "out/my-adapter")
    check_refused(done, "adapter-config", mentions=["heredity adopt out/my-adapter --parent MODEL"])
    assert main(["pull", "./base"]) == 0
    check_refused(run_here("adopt", "./base", "--parent", "base"), "bad-usage", mentions=["base", "--name"])
    assert main(["adopt", "./base", "--parent", "base", "--name", "same"]) == 0
    make_model(place / "deep", "llama", num_hidden_layers=1)
    assert main(["pull", "./deep"]) == 0
    done = run_here("adopt", "out/my-adapter", "--parent", "deep", "--declared")
    check_refused(done, "refused", ["its base does not have. Give"], after_progress=True)
    assert str(Store().root) not in done.stderr
