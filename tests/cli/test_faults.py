"""Mistakes that people made: each is answered in one line that says what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.lineage import catalog
from tests.support.cli import DESK
from tests.support.errors import check_refused, run_here

STUDY = ("study", "--model", "scripted:careful", "--application", "desk.toml")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with an application, and a file that is no folder."""
    (tmp_path / "desk.toml").write_text(DESK)
    (tmp_path / "train.csv").write_text("prompt,id\nhello,1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "code", "mentions"),
    [
        (("--probes", "train.csv"), "bad-usage", ["import:KIND:train.csv", "xstest"]),
        (("--probes", "missing.jsonl"), "bad-usage", ["import:KIND:missing.jsonl"]),
        (("--out", "train.csv"), "bad-usage", ["train.csv", "Name a folder"]),
        (("--attack", "prefill,roleplay"), "bad-usage", ["--attack once for each"]),
        (("--attack", "direct,prefill:sure"), "bad-usage", ["--attack once for each"]),
    ],
)
def test_a_study_is_refused_with_what_to_write(
    desk: Path, options: tuple[str, ...], code: str, mentions: list[str]
) -> None:
    check_refused(run_here(*STUDY, *options, cwd=desk), code, mentions=mentions)


def test_a_kind_of_check_that_does_not_exist_has_its_line_and_the_nearest(desk: Path) -> None:
    (desk / "mine.toml").write_text(
        'title = "T"\ndescription = "D"\nwhy_no_twin = "short"\n\n[[probe]]\nid = "a"\ncluster = "a"\n'
        'turns = ["Hi"]\ncheck = { kind = "secrt" }\n'
    )
    done = run_here(*STUDY, "--probes", "mine.toml", cwd=desk)
    assert done.returncode == 2 and "mine.toml:9" in done.stderr and "'secret'" in done.stderr


@pytest.mark.slow
def test_an_unknown_format_of_an_export_is_answered_with_those_that_there_are(desk: Path) -> None:
    done = run_here("export", "scripted:careful", "--to", "onnx", "out", cwd=desk)
    assert done.returncode == 2 and "adapter, gguf, hf" in done.stderr


@pytest.mark.parametrize("words", ["help", "help ask", "version", "help judges show"])
def test_help_and_version_are_verbs(words: str) -> None:
    assert run_here(*words.split()).returncode == 0


def test_the_catalogue_lists_models_of_the_store_and_marks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import msgspec

    from heredity.lineage.store import scripted

    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path))
    names = ("smollm2-135m-instruct", "qwen3-8b")
    for n, name in enumerate(names):
        record = msgspec.structs.replace(scripted(f"scripted:{('leaky', 'careful')[n]}").record, name=name)
        home = tmp_path / "models" / record.id
        home.mkdir(parents=True)
        (home / "model.json").write_bytes(msgspec.json.encode(record))
    assert main(["models", "--catalog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    marked = {line.split()[0] for line in lines if "in the store" in line}
    assert marked == set(names)
    assert main(["models", "--catalog", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(catalog.catalogue()) <= set(found)
    assert {name for name, entry in found.items() if entry.get("is_in_store")} == set(names)
