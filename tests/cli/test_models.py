"""pull, models, show and verify on a tiny real GGUF, by the real command."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import msgspec
import pytest

from heredity.cli import main
from heredity.core.errors import Unavailable
from heredity.core.records import FileHash
from heredity.lineage.references import find_or_pull, ready_models
from heredity.lineage.store import Store, scripted
from heredity.lineage.types import Grown
from tests.support.cli import DESK, Run
from tests.support.errors import Done, check_refused, run_here
from tests.support.model_sources import tiny_gguf  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def pulled(run: Run, place: Path, tiny_gguf: Path) -> str:  # noqa: F811
    """The id of the tiny model, pulled into the store of `place`."""
    done = run("pull", str(tiny_gguf))
    assert done.returncode == 0, done.stderr
    assert "licence: apache-2.0" in done.stderr
    name, model_id = done.stdout.split()
    assert name == "tiny"
    return model_id


def test_a_pulled_model_is_listed_with_size_and_licence(pulled: str, run: Run) -> None:
    listed = run("models").stdout
    assert all(word in listed for word in ("tiny", pulled[:8], "gguf", "apache-2.0", "kB"))
    assert [model["id"] for model in json.loads(run("models", "--json").stdout)] == [pulled]
    assert "pull, gguf" in run("models", "--tree").stdout


def test_show_of_a_model_names_its_files_and_hashes(pulled: str, run: Run) -> None:
    done = run("show", "tiny")
    assert done.returncode == 0, done.stderr
    assert pulled in done.stdout and "sha256" in done.stdout
    assert json.loads(run("show", pulled[:8], "--json").stdout)["id"] == pulled


def test_verify_says_whole_and_then_names_the_file_that_was_changed(
    pulled: str, run: Run, place: Path
) -> None:
    assert run("verify", "tiny").returncode == 0
    store = Store(place / "store")
    grown = store.get("tiny")
    path = grown.folder / grown.record.files[0].path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = run("verify")
        assert path.name in done.stdout and "SHA-256" in done.stdout
        check_refused(done, "damaged", mentions=["1 of 1"])
    finally:
        path.write_bytes(whole)


def test_a_record_that_cannot_be_read_is_named_and_hides_no_other(pulled: str, run: Run, place: Path) -> None:
    bad = place / "store" / "models" / ("e" * 64)
    bad.mkdir()
    (bad / "model.json").write_text("{")
    try:
        for args in (("models",), ("models", "--json"), ("models", "--tree")):
            done = run(*args)
            assert done.returncode == 0, done.stderr
            assert "tiny" in done.stdout
            assert "warning: " in done.stderr and str(bad) in done.stderr
        done = run("verify")
        assert f"{pulled[:12]}  whole" in done.stdout and str(bad) in done.stdout
        check_refused(done, "damaged", mentions=["1 of 2"])
    finally:
        (bad / "model.json").unlink()
        bad.rmdir()


def test_a_pull_of_nothing_known_is_one_line_with_the_nearest(run: Run) -> None:
    done = run("pull", "smollm2-135m-instuct")
    check_refused(done, "unknown-name", mentions=["smollm2-135m-instruct"])


def test_a_truncated_file_is_refused_in_one_line_and_leaves_nothing(
    pulled: str, run: Run, place: Path, tiny_gguf: Path  # noqa: F811
) -> None:  # fmt: skip
    (place / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:-1000])
    before = sorted((place / "store" / "models").iterdir())
    done = run("pull", "cut.gguf")
    assert done.stdout == ""
    check_refused(done, "damaged", mentions=["cut.gguf"])
    assert sorted((place / "store" / "models").iterdir()) == before


def test_a_model_of_a_study_is_converted_while_the_next_one_is_pulled(
    tmp_path: Path,
    tiny_gguf: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refs = [str(shutil.copy(tiny_gguf, tmp_path / f"{name}.gguf")) for name in ("first", "second")]
    is_next_pulled, convert, pull = Event(), Store.ready, Store.pull

    def late(store: Store, model: Grown) -> Grown:
        assert model.record.name == "second" or is_next_pulled.wait(60)
        return convert(store, model)

    def pull_and_tell(store: Store, ref: str, *rest: object) -> Grown:
        grown = pull(store, ref)
        if grown.record.name == "second":
            is_next_pulled.set()
        return grown

    monkeypatch.setattr(Store, "ready", late)
    monkeypatch.setattr(Store, "pull", pull_and_tell)
    store = Store(tmp_path / "store")

    def find(ref: str) -> Grown:
        return find_or_pull(ref, store, lambda name, _: store.pull(name))

    models = ready_models([*refs, "scripted:careful"], store, find)
    assert [each.record.name for each in models] == ["first", "second", "scripted:careful"]
    assert sorted(model.name for model in store.models()) == ["first", "first-bf16", "second", "second-bf16"]


def test_a_model_that_wraps_another_waits_for_its_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[str] = []

    def convert(_: Store, model: Grown) -> Grown:
        time.sleep(0.2)
        states.append(f"{model.record.name} converted")
        return model

    def stored(ref: str) -> Grown:
        states.append(f"{ref} taken")
        return named(ref)

    monkeypatch.setattr(Store, "ready", convert)
    ready_models(["small", "kv4:small"], Store(tmp_path / "store"), stored)
    assert states == ["small taken", "small converted", "kv4:small taken", "kv4:small converted"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, Unavailable])
def test_an_interrupted_pull_converts_no_model_that_still_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    refs, asked = [str(tmp_path / name) for name in ("first", "second", "third")], Event()
    begun: list[str] = []

    def convert(_: Store, model: Grown) -> Grown:
        begun.append(model.record.name)
        asked.wait(60)
        time.sleep(0.3)  # so that the others wait while the pull ends
        return model

    def pull(ref: str) -> Grown:
        if ref == refs[2]:
            asked.set()
            raise end
        return named(Path(ref).name)

    monkeypatch.setattr(Store, "ready", convert)
    with pytest.raises(end):
        ready_models(refs, Store(tmp_path / "store"), pull)
    assert begun == ["first"]


def test_after_a_failed_conversion_nothing_more_is_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled: list[str] = []
    has_failed = Event()

    def convert(_: Store, _model: Grown) -> Grown:
        has_failed.set()
        raise Unavailable("no such tokenizer")

    def pull(ref: str) -> Grown:
        pulled.append(ref)
        if len(pulled) == 2:
            assert has_failed.wait(60)
            time.sleep(0.1)
        return named(ref)

    monkeypatch.setattr(Store, "ready", convert)
    with pytest.raises(Unavailable):
        ready_models(["first", "second", "third"], Store(tmp_path / "store"), pull)
    assert pulled == ["first", "second"]


@pytest.mark.parametrize("n", [20, 70])
def test_no_size_is_cut_from_its_unit_at_80_columns(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path))
    model = msgspec.structs.replace(
        named("x" * n).record, format="safetensors", licence="Apache-2.0",
        files=(FileHash("model.safetensors", 91_600_000, "0" * 64),),
    )  # fmt: skip
    (home := tmp_path / "models" / model.id).mkdir(parents=True)
    (home / "model.json").write_bytes(msgspec.json.encode(model))
    assert main(["models"]) == 0
    said = capsys.readouterr()
    _, row, *rest = said.out.splitlines()
    assert re.search(rf"^x+ +{model.id[:8]}  safetensors  91.6 MB  Apache-2.0", row)
    assert "".join([row.split()[0], *map(str.strip, rest)]) == "x" * n
    assert "\n1 model, 91.6 MB" in "\n" + said.err


def named(name: str) -> Grown:
    return Grown(msgspec.structs.replace(scripted("scripted:careful").record, name=name), Path(name))


def ask_desk(folder: Path, *models: str, options: Sequence[str] = ("--dry-run",)) -> Done:
    """A study of these models, with a store of its own in `folder`."""
    (folder / "desk.toml").write_text(DESK)
    named = [word for model in models for word in ("--model", model)]
    asked = ("--application", "desk.toml", "--probes", "planted_secret", "--out", "out")
    return run_here(
        "study", *named, *asked, *options, cwd=folder, env={"HEREDITY_STORE": str(folder / "store")}
    )


def test_a_dry_run_forecasts_from_the_catalogue_and_pulls_nothing(tmp_path: Path) -> None:
    done = ask_desk(tmp_path, "gemma-3-270m", "kv4:qwen2.5-coder-0.5b-instruct")  # terms, but no question
    assert done.returncode == 0 and "253 MB" in done.stderr and "491 MB" in done.stderr
    assert "Dry run: 2 models" in done.stderr and Store(tmp_path / "store").models() == []
    assert not (tmp_path / "out").exists() and not (tmp_path / "store" / "downloads").exists()


def test_a_dry_run_converts_nothing(tmp_path: Path, tiny_gguf: Path) -> None:  # noqa: F811
    Store(tmp_path / "store").pull(str(tiny_gguf))
    name = tiny_gguf.stem
    assert ask_desk(tmp_path, name, f"kv8:{name}", str(tiny_gguf)).returncode == 0
    assert [model.name for model in Store(tmp_path / "store").models()] == [name]


def test_without_torch_nothing_is_pulled_or_converted(
    tmp_path: Path,
    tiny_gguf: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Store(tmp_path / "store").pull(str(tiny_gguf))
    monkeypatch.setattr("heredity.cli.pull.find_spec", lambda name: None)
    for ref, extra in (
        ("smollm2-135m-instruct", "torch"), ("hf:owner/name", "torch"), (str(tiny_gguf), "torch"),
        (tiny_gguf.stem, "torch"), ("llamacpp:smollm2-135m-instruct", "llamacpp"),
    ):  # fmt: skip
        done = ask_desk(tmp_path, ref, options=["--yes"])
        check_refused(done, "package-missing", mentions=[f".[{extra}]"])
    assert [model.name for model in Store(tmp_path / "store").models()] == [tiny_gguf.stem]
    assert not (tmp_path / "store" / "downloads").exists()
