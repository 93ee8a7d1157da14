"""The pages as files: whole, linked only among themselves, and without a request or a form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.core.errors import UsageError
from heredity.view.export import ExportedPages, export
from heredity.view.places import StudyPlace
from heredity.view.site import Site
from tests.support import report_studies
from tests.support.errors import raises
from tests.view.conftest import written
from tests.view.test_pages import HOSTILE, Tags


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportedPages]:
    root = tmp_path_factory.mktemp("export")
    report_studies.make(root / "runs" / "desk", report_studies.plan(n_probes=1), HOSTILE)
    return root / "out", export(StudyPlace(root / "runs", root / "store"), root / "out")


def test_every_link_leads_to_a_file_of_the_folder(exported: tuple[Path, ExportedPages]) -> None:
    out, found = exported
    pages = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
    assert found.page == out / "index.html" and len(pages) == found.n_pages and not found.n_left_out
    linked = set()
    for text in pages.values():
        for tag, attributes in Tags(text).found:
            assert tag not in ("form", "input", "link", "img", "iframe") and "src" not in attributes
            if tag == "a" and (address := attributes.get("href")) is not None and not address.startswith("#"):
                linked.add(address)
    assert linked | {"index.html"} == set(pages)


def test_a_page_runs_only_the_script_whose_hash_its_policy_names(
    exported: tuple[Path, ExportedPages],
) -> None:
    out, _ = exported
    for path in out.iterdir():
        text = path.read_text(encoding="utf-8")
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
        assert text.count("<script>") == 1 and "onerror=" not in re.sub("&lt;.*?&gt;", "", text)


def test_every_trial_and_every_pair_is_there(exported: tuple[Path, ExportedPages]) -> None:
    out, _ = exported
    names = [path.name for path in out.iterdir()]
    assert len([name for name in names if "-t-" in name]) == 12
    assert len([name for name in names if "-pair-" in name]) >= 2


def test_what_exceeds_the_limit_is_no_link_and_counted(tmp_path: Path) -> None:
    place = written(tmp_path)
    found = export(place, tmp_path / "out", most=5)
    assert found.n_pages == 5 and found.n_left_out > 5
    assert 'href=""' not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with raises(UsageError, "folder-not-empty"):
        export(written(tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("HEREDITY_STORE", str(tmp_path / "store"))
    written(tmp_path)
    assert main(["view", str(tmp_path / "runs"), "--export", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")
    assert main(["view", str(tmp_path / "nothing")]) == 2


def test_every_page_says_that_it_has_no_filters_and_what_has(exported: tuple[Path, ExportedPages]) -> None:
    out, _ = exported
    for path in out.iterdir():
        assert path.read_text(encoding="utf-8").count("without search, filters and labels") == 1, path.name


def test_a_page_of_the_server_does_not_say_so(tmp_path: Path) -> None:
    assert "without search" not in Site(written(tmp_path)).render("/")
