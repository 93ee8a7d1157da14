"""What a shell gets when a user presses the tab key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.lineage.store import Store, scripted

Offer = Callable[[str], list[str]]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Offer:
    """The words that are offered for the end of a command line, with a model and two studies there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    model = scripted("scripted:leaky").record
    _keep(tmp_path / "store", "smollm2-135m-instruct", model.id)
    for name in ("runs/desk", "runs/night", "other/deeper/too-deep"):
        Path(name).mkdir(parents=True)
        Path(name, "plan.json").touch()

    def words(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        monkeypatch.setenv("_HEREDITY_COMPLETE", "bash_complete")
        assert main([]) == 0
        return [each.partition(",")[2] for each in capsys.readouterr().out.splitlines()]

    return words


def _keep(store: Path, name: str, ident: str) -> None:
    """Record a model by this name, of which there are no files."""
    import msgspec

    record = msgspec.structs.replace(scripted("scripted:leaky").record, name=name)
    home = store / "models" / ident
    home.mkdir(parents=True)
    (home / "model.json").write_bytes(msgspec.json.encode(record))
    assert [model.name for model in Store(store).models()] == [name]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("heredity stu", ["studies", "study"]),
        ("heredity judges sh", ["show"]),
        ("heredity ask smo", ["smollm2-135m-instruct", "smollm2"]),
        ("heredity gate runs/desk --baseline smollm2-", ["smollm2-135m-instruct"]),
        ("heredity study --attack pre", ["prefill"]),
        ("heredity study --probes planted", ["planted_secret"]),
        ("heredity study --judge ru", ["rubric", "rules"]),
        ("heredity judges calibrate lea", ["learned"]),
        ("heredity report --format sa", ["sarif"]),
        ("heredity export smollm2 --to gg", ["gguf"]),
        ("heredity help co", ["corpus", "completion"]),
        ("heredity show runs/n", ["runs/night"]),
    ],
)
def test_names_are_completed(offer: Offer, line: str, words: list[str]) -> None:
    assert sorted(offer(line)) == sorted(words)


def test_after_a_study_its_own_models_are_offered(offer: Offer) -> None:
    names = ["scripted:leaky", "scripted:leaky+secrets", "tiny", "bad $(name)", "one:same", "two:same"]
    planned = {"plan": {"models": [{"name": name} for name in names]}}
    Path("runs/desk/plan.json").write_text(json.dumps(planned))
    assert offer("heredity gate runs/desk --candidate ") == ["leaky", "leaky+secrets", "tiny"]
    assert offer("heredity gate runs/desk --baseline ti") == ["tiny"]
    assert offer("heredity label runs/desk --edge ti") == ["tiny"]
    assert offer("heredity gate runs/night --candidate smollm2-") == ["smollm2-135m-instruct"]  # no plan


def test_studies_come_before_other_files(offer: Offer) -> None:
    assert [each for each in offer("heredity report runs/") if each] == ["runs/desk", "runs/night", "runs/"]
    assert offer("heredity gate ")[:2] == ["runs/desk", "runs/night"]


def test_a_model_to_pull_is_one_of_the_catalogue(offer: Offer) -> None:
    assert {"qwen", "gemma"} <= {*offer("heredity pull qw"), *offer("heredity pull gem")}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.slow
def test_the_script_asks_heredity(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert f"_HEREDITY_COMPLETE={shell}_complete" in capsys.readouterr().out
