"""The pages as files: whole, linked only among themselves, and without a request or a form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heredity.cli import main
from heredity.core.errors import Damaged, UsageError
from heredity.study.aggregate import estimate
from heredity.study.plan import read_plan
from heredity.study.storage import write_estimates
from heredity.view.export import ExportedPages, export
from heredity.view.places import OpenStudy, StudyPlace
from heredity.view.queries import Transcript, read
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


def pages(out: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}


def anchors(text: str) -> list[str]:
    return [attributes["id"] or "" for _, attributes in Tags(text).found if "id" in attributes]


def links(text: str) -> set[str]:
    """The addresses of a page that lead to a place, without those on the page itself."""
    found = {attributes.get("href") or "#" for tag, attributes in Tags(text).found if tag == "a"}
    return {address for address in found if not address.startswith("#")}


def check_links(out: Path) -> None:
    found = pages(out)
    places = {name: anchors(text) for name, text in found.items()}
    linked = {"index.html"}
    for text in found.values():
        for address in links(text):
            name, _, anchor = address.partition("#")
            assert not anchor or places[name].count(anchor) == 1, address
            linked.add(name)
    assert linked == set(found)


def test_every_link_leads_to_a_place_in_a_file_of_the_folder(exported: tuple[Path, ExportedPages]) -> None:
    out, found = exported
    assert found.page == out / "index.html" and len(pages(out)) == found.n_files
    for text in pages(out).values():
        for tag, attributes in Tags(text).found:
            assert tag not in ("form", "input", "link", "img", "iframe") and "src" not in attributes
    check_links(out)


def test_a_page_runs_only_the_script_whose_hash_its_policy_names(
    exported: tuple[Path, ExportedPages],
) -> None:
    out, _ = exported
    for path in out.iterdir():
        text = path.read_text(encoding="utf-8")
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
        assert text.count("<script>") == 1 and "onerror=" not in re.sub("&lt;.*?&gt;", "", text)


def test_every_trial_is_in_one_place_beside_those_of_the_other_models(
    exported: tuple[Path, ExportedPages],
) -> None:
    out, _ = exported
    every = [anchor for text in pages(out).values() for anchor in anchors(text)]
    assert sorted(a for a in every if a.startswith("t-")) == sorted(f"t-{i}" for i in range(12))
    assert sorted(a for a in every if a.startswith("p-")) == [f"p-{place}" for place in range(6)]
    (text,) = (text for name, text in pages(out).items() if "-trials-" in name)
    trial = text.partition('id="p-3"')[2].partition("</article>")[0]
    assert anchors(trial) == ["t-3", "t-9"]


def test_a_question_that_all_models_were_asked_is_there_once(exported: tuple[Path, ExportedPages]) -> None:
    out, _ = exported
    (text,) = (text for name, text in pages(out).items() if "-trials-" in name)
    for trial in text.split("</article>")[:-1]:
        assert trial.count('<p class="who">asked</p>') == 1 and "Please do thing number 0." in trial


def test_models_that_were_asked_otherwise_have_a_question_each(tmp_path: Path) -> None:
    place = written(tmp_path)
    path = tmp_path / "runs" / "small" / "responses.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:1]).replace('"prompt":"p"', '"prompt":"another"') + "".join(rows[1:]))
    export(place, tmp_path / "out")
    text = next(text for name, text in pages(tmp_path / "out").items() if "-trials-" in name)
    first, second, *_ = text.split("</article>")
    assert first.count('<p class="who">asked</p>') == 2 and second.count('<p class="who">asked</p>') == 1


def test_a_count_of_the_overview_is_that_of_the_list_that_it_opens(tmp_path: Path) -> None:
    report_studies.make(tmp_path / "runs" / "desk", report_studies.plan(n_probes=6))
    export(StudyPlace(tmp_path / "runs", tmp_path / "store"), tmp_path / "out")
    found = pages(tmp_path / "out")
    (overview,) = (text for text in found.values() if 'class="matrix"' in text)
    counts = re.findall(r'<a class="n s-\w+" href="([^"#]*)#([^"]*)">(\d+) ', overview)
    one = '(?:<a class="(?:strong)?" href="([^"#]*)#([^"]*)"><b>(\\d+)</b>)'
    shared = re.findall(one, overview)
    assert len(counts) > 10 and len(shared) == 7  # of two kinds; one of the eight has no trial
    for name, anchor, n in counts:
        group = found[name].partition(f'<h2 id="{anchor}">')[2].partition("</ol>")[0]
        assert group.count("data-row") == int(n)
    for name, anchor, n in shared:
        start = anchor.rpartition("-")[0]
        groups = re.findall(rf'<h2 id="{start}-\d+">.*?<ol.*?</ol>', found[name], re.DOTALL)
        assert sum(group.count("data-row") for group in groups) == int(n)


def test_many_trials_are_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heredity.view.export.CONVERSATIONS", 6)
    monkeypatch.setattr("heredity.view.export.LINES", 5)
    export(written(tmp_path, {0: "broke", 13: "broke"}), tmp_path / "out")
    names = sorted(path.name.partition("-")[2].partition("-")[2] for path in (tmp_path / "out").iterdir())
    assert [name for name in names if name.startswith("trials")] == [f"trials-{n}.html" for n in range(1, 5)]
    assert len([name for name in names if name.startswith("conversations")]) == 5
    assert len([name for name in names if name.startswith("pairs")]) > 1
    check_links(tmp_path / "out")


def test_a_study_without_answers_is_exported(tmp_path: Path) -> None:
    place = written(tmp_path)
    for name in ("responses.jsonl", "verdicts.jsonl"):
        (tmp_path / "runs" / "small" / name).unlink()
    export(place, tmp_path / "out")
    check_links(tmp_path / "out")


def test_the_report_of_a_study_is_beside_its_pages_and_is_made_from_its_rows(tmp_path: Path) -> None:
    place, folder = written(tmp_path), tmp_path / "runs" / "small"
    write_estimates(folder, estimate(read_plan(folder), folder))
    (folder / "report.html").write_text('<link rel="preconnect" href="http://elsewhere.example/">theirs')
    found = export(place, tmp_path / "out")
    (name,) = (path.name for path in (tmp_path / "out").iterdir() if path.name.endswith("-report.html"))
    assert len(pages(tmp_path / "out")) == found.n_files
    (overview,) = (text for text in pages(tmp_path / "out").values() if 'class="matrix"' in text)
    assert f'<a href="{name}">The report</a>' in overview
    text = (tmp_path / "out" / name).read_text()
    assert "elsewhere.example" not in text and "theirs" not in text and "default-src 'none'" in text


def test_the_page_of_a_report_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    place = written(tmp_path)
    (tmp_path / "runs" / "small" / "report.html").write_text("theirs")
    export(place, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*-report.html")
    assert "estimates.json" in path.read_text() and "theirs" not in path.read_text()


def test_a_row_that_cannot_be_read_is_named_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(study: OpenStudy, index: int) -> Transcript | None:
        if index == 1:
            raise Damaged("the row is not where it was", code="damaged")
        return read(study, index)

    monkeypatch.setattr("heredity.view.export.read", failing)
    export(written(tmp_path), tmp_path / "out")
    text = next(text for name, text in pages(tmp_path / "out").items() if "-trials-" in name)
    assert text.count("the row is not where it was") == 1 and text.count(">reply ") == 23


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with raises(UsageError, "bad-usage"):
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
