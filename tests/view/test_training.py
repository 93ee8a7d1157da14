"""The pages of trainings: rows of runs under way and of models, and nothing of them that is not there."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from heredity.core.errors import UnknownName
from heredity.core.files import Lock
from heredity.core.records import FileHash, Made, Model, RecipeRecord, encode
from heredity.lineage.store import RUN, RunInProgress, identity, key_of, write_record
from heredity.view.pages.training import POINTS, find, read_curve, runs
from heredity.view.places import StudyPlace
from heredity.view.site import Site
from tests.support.errors import raises
from tests.view.test_pages import HOSTILE, Tags

KEY = "c" * 32


def rows(n: int, first: int = 0) -> bytes:
    lines = (
        {"step": i, "loss": 4.0 - i / n, "rate": 1e-4, "norm": 1.0, "n_tokens": 10, "n_learned": 8.0,
         "terms": {"valid": 2.5} if i == n - 1 else {}, "schema": 1}
        for i in range(first, n)
    )  # fmt: skip
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def begun(store: Path, name: str = "tuned") -> Path:
    """The folder of a training of 90 steps, of which 30 are done."""
    folder = store / "training" / KEY
    folder.mkdir(parents=True)
    (folder / "training.jsonl").write_bytes(rows(30))
    recipe = RecipeRecord("lora", {"steps": 90, "note": name})
    (folder / RUN).write_bytes(encode(RunInProgress(name, recipe, ("d" * 32,), "2026-01-02T03:04:05")))
    shown = {"n_done": 30, "n_steps": 90, "per_second": 512.4, "seconds_left": [200, 290]}
    (folder / "progress.json").write_text(json.dumps(shown))
    return folder


def finished(store: Path, n: int = 1000) -> str:
    """The record and the files of a model that was trained."""
    files = (FileHash("training.jsonl", 9, "ab" * 32),)
    recipe = RecipeRecord("finetune", {"steps": n})
    ident = identity(recipe, (), files)
    made = Made("2026-01-01T00:00:00", "host", 100.0, {})
    model = Model(ident, "done", "f", "text", "MIT", "safetensors", (), recipe, files, made)
    write_record(model, store / "models" / ident)
    folder = store / "models" / ident / "files"
    folder.mkdir()
    (folder / "training.jsonl").write_bytes(rows(n))
    return ident


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes in folders there")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("link", "answers.jsonl"),
        *itertools.product(
            ["pipe", "device"], ["training.jsonl", RUN, "progress.json", "model.json", "config.json"]
        ),
    ],
)
def test_a_forged_file_in_a_strangers_folder_blocks_no_page(kind: str, name: str, tmp_path: Path) -> None:
    place, secret = tmp_path / "place", tmp_path / "secret.jsonl"
    home = place / "models" / finished(place)
    files = {"model.json": home, "config.json": home / "files"}
    path = files.get(name, begun(place)) / name
    secret.write_text('{"text": "private words"}\n' * 9)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "link": secret}[kind])
    code = (
        "import pathlib, resource, sys\n"
        "from heredity.core.errors import HeredityError\n"
        "from heredity.view.places import StudyPlace; from heredity.view.site import Site\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "site = Site(StudyPlace(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1])))\n"
        "for page in sys.argv[2:]:\n"
        "    try: print(site.render(page))\n"
        "    except HeredityError as error: print(error.code)\n"
    )
    command = [sys.executable, "-c", code, str(place), "/training", f"/training/{KEY}", "/lineage"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert "Training" in done.stdout and "private words" not in done.stdout


def page_of(tmp_path: Path) -> Site:
    return Site(StudyPlace(tmp_path / "runs", tmp_path))


def test_a_store_whose_first_training_runs_is_shown(tmp_path: Path) -> None:
    begun(tmp_path / "new")
    assert not (tmp_path / "new" / "models").exists()
    site = Site(StudyPlace(tmp_path / "new", tmp_path / "other"))
    assert "tuned" in site.render("/training") and "tuned" in site.render(f"/training/{KEY}")


def test_a_run_under_way_shows_its_loss_speed_and_time_left(tmp_path: Path) -> None:
    with Lock(begun(tmp_path)):
        page = page_of(tmp_path).render(f"/training/{KEY}")
    for part in ("running", "30 of 90 steps", "512 tokens/s", "3 to 5 min left", "300 tokens read", "tuned"):
        assert part in page, part
    assert page.count("<polyline") == 1 and len(re.findall(r'<th scope="row">', page)) == 20
    assert '<th scope="row">0</th>' in page and '<th scope="row">29</th>' in page


def test_rows_that_come_change_the_mark_and_the_curve(tmp_path: Path) -> None:
    folder, place = begun(tmp_path), StudyPlace(tmp_path / "runs", tmp_path)
    before = place.mark()
    run = find(tmp_path, KEY)
    assert run is not None and read_curve(run).n_done == 30
    with (folder / "training.jsonl").open("ab") as file:
        file.write(rows(40, 30) + b'{"step": 40, "lo')
    assert place.mark() != before and (read_curve(run).n_done, read_curve(run).n_unread) == (40, 0)


def test_a_run_whose_process_is_gone_has_stopped_and_has_no_time_left(tmp_path: Path) -> None:
    begun(tmp_path)
    page = page_of(tmp_path).render(f"/training/{KEY}")
    assert "stopped" in page and "left" not in page


def test_a_finished_one_is_on_its_models_page_and_a_curve_has_few_points(tmp_path: Path) -> None:
    ident = finished(tmp_path)
    run = find(tmp_path, ident)
    assert run is not None
    curve = read_curve(run)
    assert len(curve.points) <= POINTS and curve.points[0].last == 2 and curve.last is not None
    assert curve.points[0].loss == pytest.approx(4.0 - 1 / 1000) and curve.last.last == 999
    page = page_of(tmp_path).render(f"/training/{ident}")
    assert run.model is not None  # a page that was opened while it ran goes on to its end
    assert page_of(tmp_path).render(f"/training/{key_of(run.model.recipe, ())}") == page
    assert "100 tokens/s over the whole making" in page and "valid" in page and f"/lineage/{ident}" in page


def test_running_ones_are_listed_first_and_a_bad_row_is_counted(tmp_path: Path) -> None:
    finished(tmp_path)
    folder = begun(tmp_path)
    with (folder / "training.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "loss": NaN}\nnot a row\n{"step": 2, "loss": 1e999}\n')
    with Lock(folder):
        assert [run.state for run in runs(tmp_path)] == ["running", "finished"]
    assert [run.state for run in runs(tmp_path)] == ["stopped", "finished"]
    site = page_of(tmp_path)
    assert "3 rows of training.jsonl cannot be read" in site.render(f"/training/{KEY}")
    listed = site.render("/training")
    assert listed.index("tuned") < listed.index("done")


def test_names_and_answers_are_text(tmp_path: Path) -> None:
    folder = begun(tmp_path, name=HOSTILE)
    said = {"index": 0, "text": HOSTILE, "stop": "end", "schema": 1}
    asked = {"messages": [{"role": "user", "content": "Ask."}, {"role": "assistant", "content": HOSTILE}]}
    (folder / "answers.jsonl").write_text(f"{json.dumps(said)}\n{json.dumps(asked)}\n[1]\n")
    for path in ("/training", f"/training/{KEY}"):
        page = page_of(tmp_path).render(path)
        assert "&lt;script&gt;" in page and not re.search("<script>|\x1b|\u202e", page)
        for tag, attributes in Tags(page).found:
            assert not any(key.startswith("on") or key == "style" for key in attributes), (tag, attributes)
    assert page.count("answered by the teacher") == 2 and "Ask." in page


def test_a_run_of_an_older_release_has_no_name_and_an_unknown_one_no_page(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (folder / RUN).unlink()
    (folder / "progress.json").write_text("{")
    page = page_of(tmp_path).render(f"/training/{KEY}")
    assert KEY[:12] in page and "30 steps" in page
    with raises(UnknownName, "unknown-name"):
        page_of(tmp_path).render("/training/nothing")


def test_exported_pages_have_no_training(tmp_path: Path) -> None:
    live, files = (Site(StudyPlace(tmp_path, tmp_path), is_live=each) for each in (True, False))
    assert "/training" in live.render("/") and "/training" not in files.render("/")
