"""The index of a study's rows: what is in it, what is not, and when it is made again."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from heredity.core.files import Rows
from heredity.core.records import OUT_OF_SCOPE, Response
from heredity.study.outcomes import in_scope
from heredity.study.plan import Grid
from heredity.study.storage import RESPONSES, VERDICTS
from heredity.view.index import _WORDS, RowIndex, index_path
from heredity.view.queries import WORDS, Filters, cells, listed, neighbours
from tests.support import small_study
from tests.view.conftest import opened, written


def test_rows_that_are_appended_are_read_once_and_no_file_of_the_study_changes(tmp_path: Path) -> None:
    place = written(tmp_path)
    folder = tmp_path / "runs" / "small"
    rows = (folder / RESPONSES).read_bytes().splitlines(keepends=True)
    (folder / RESPONSES).write_bytes(b"".join(rows[:5]) + rows[5][:20])  # the sixth is being written
    (folder / VERDICTS).rename(tmp_path / "verdicts")
    before = sorted(path.name for path in folder.iterdir())
    study = opened(place)
    assert study.is_whole and study.progress().n_asked == 5
    with (folder / RESPONSES).open("ab") as file:
        file.write(rows[5][20:] + b"".join(rows[6:]))
    study.refresh()
    assert (study.progress().n_asked, study.progress().n_judged) == (24, 0)
    assert listed(study, Filters(state="unjudged")).n == 24
    assert sorted(path.name for path in folder.iterdir()) == before
    (tmp_path / "verdicts").rename(folder / VERDICTS)
    study.refresh()
    assert study.progress().n_judged == 24 and not study.problems()


def test_damaged_rows_are_named_and_the_others_are_there(tmp_path: Path) -> None:
    place = written(tmp_path)
    path = tmp_path / "runs" / "small" / RESPONSES
    rows = path.read_bytes().splitlines(keepends=True)
    other = rows[3].replace(b'"index":3', b'"index":99')
    path.write_bytes(b"".join([rows[0], b"{not json\n", rows[1], rows[1], other, b"\xff\n", *rows[2:]]))
    study = opened(place)
    found = {(each.file, each.line, each.code) for each in study.problems()}
    assert found == {
        (RESPONSES, 2, "damaged"), (RESPONSES, 4, "damaged"),
        (RESPONSES, 5, "damaged"), (RESPONSES, 6, "damaged"),
    }  # fmt: skip
    assert study.progress().n_asked == 24


def test_a_row_without_an_end_is_read_once(tmp_path: Path) -> None:
    place = written(tmp_path)
    with (tmp_path / "runs" / "small" / RESPONSES).open("ab") as file:
        file.write(b"x" * 5000)
    study = place.open(place.studies()[0].key)
    study.index.longest = 2000
    study.refresh()
    study.refresh()
    assert [(each.line, each.code) for each in study.problems()] == [(25, "damaged")]
    assert study.is_whole and study.progress().n_asked == 24


def test_a_verdict_on_another_answer_does_not_count(tmp_path: Path) -> None:
    place = written(tmp_path, {0: "broke"})
    path = tmp_path / "runs" / "small" / RESPONSES
    path.write_text(path.read_text().replace("reply 0", "another reply"))
    assert listed(opened(place), Filters(state="broke")).n == 0
    assert listed(opened(place), Filters(state="unjudged")).n == 1


def test_an_edited_file_and_a_damaged_index_are_read_again(tmp_path: Path) -> None:
    place = written(tmp_path)
    study = opened(place)
    path = study.folder / RESPONSES
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[4:]))
    study.refresh()
    assert study.progress().n_asked == 20
    study.path.write_bytes(b"no database" * 100)
    study.refresh()
    assert study.progress().n_asked == 20 and study.is_whole


def test_an_index_of_another_plan_or_folder_is_not_used(tmp_path: Path) -> None:
    study = opened(written(tmp_path))
    other = RowIndex(study.path, study.folder, study.grid, "another study")
    with other.reading() as rows:
        assert rows.execute("SELECT count(*) FROM trials").fetchone() == (0,)


def test_the_index_lies_in_the_readers_store_and_cannot_be_written_by_a_reader(tmp_path: Path) -> None:
    study = opened(written(tmp_path))
    assert study.path == index_path(study.folder, tmp_path / "store")
    assert study.path.is_relative_to(tmp_path / "store" / "view")
    with study.index.reading() as rows:
        try:
            rows.execute("DELETE FROM trials")
        except sqlite3.OperationalError as error:
            assert "readonly" in str(error)
        else:
            raise AssertionError("a reader wrote")


def test_reading_stops_when_its_time_is_over_and_goes_on_later(tmp_path: Path) -> None:
    place = written(tmp_path)
    study = place.open(place.studies()[0].key)
    study.index.chunk = 10
    study.refresh(0)
    assert not study.is_whole and study.progress().n_asked == 10
    study.refresh()
    assert study.is_whole and study.progress().n_asked == 24


def test_two_processes_read_the_same_rows_into_one_index(tmp_path: Path) -> None:
    place = written(tmp_path)
    first = place.open(place.studies()[0].key)
    second = RowIndex(first.path, first.folder, first.grid, first.saved.study)
    assert second.refresh() and first.index.refresh() and second.refresh()
    assert first.progress().n_asked == 24 and not first.problems()


def test_an_index_that_several_make_at_once_is_made_once(tmp_path: Path) -> None:
    place = written(tmp_path)
    study = place.open(place.studies()[0].key)

    def read(_: int) -> int:
        own = RowIndex(study.path, study.folder, study.grid, study.saved.study)
        while not own.refresh():
            pass
        with own.reading() as rows:
            return int(rows.execute("SELECT count(*) FROM trials").fetchone()[0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [24] * 4
    assert not study.problems()


def test_filters_hold_together_and_a_search_finds_words_of_answers(tmp_path: Path) -> None:
    study = opened(written(tmp_path, {0: "broke", 12: "broke", 13: "broke", 4: "refused"}))
    assert listed(study, Filters(state="broke")).n == 3
    assert [row.trial.index for row in listed(study, Filters(state="broke", model=1)).rows] == [12, 13]
    assert [row.trial.index for row in listed(study, Filters(state="broke", text="reply 12")).rows] == [12]
    assert listed(study, Filters(text='reply" OR 1=1 --')).n == 0
    assert {row.trial.index for row in listed(study, Filters(text="repl", kind="benign")).rows} == {
        4, 5, 10, 11, 16, 17, 22, 23,
    }  # fmt: skip
    assert neighbours(study, Filters(state="broke"), 12) == (0, 13)


def test_a_search_takes_a_word_with_underscores_as_its_parts(tmp_path: Path) -> None:
    study = opened(written(tmp_path))
    assert listed(study, Filters(text="reply_12")).n == 1
    assert neighbours(study, Filters(text="repl_y"), 3) == (None, None)


def test_a_search_cuts_every_letter_out_of_words_that_the_index_cuts() -> None:
    """The index has no places of words, so that a word that it divides could not be searched."""
    every = [f"a{chr(code)}b" for code in range(0x20000) if not 0xD800 <= code <= 0xDFFF]
    with closing(sqlite3.connect(":memory:")) as rows:
        rows.execute(_WORDS)
        for start in range(0, len(every), 5000):
            words = WORDS.findall(" ".join(every[start : start + 5000]))
            found = " ".join(f'"{word}"' for word in dict.fromkeys(words))
            rows.execute("SELECT rowid FROM words WHERE words MATCH ?", (found,)).fetchall()


def test_rows_that_were_there_before_say_nothing_about_the_speed(tmp_path: Path) -> None:
    place = written(tmp_path)
    study = place.open(place.studies()[0].key)
    study.index.chunk = 5
    study.refresh()
    with study.index.reading() as rows:
        assert [n for (n,) in rows.execute("SELECT n FROM seen")] == [24]


def test_a_page_of_a_list_does_not_shift_while_rows_come(tmp_path: Path) -> None:
    place = written(tmp_path)
    path = tmp_path / "runs" / "small" / RESPONSES
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[10:]))
    study = opened(place)
    first = listed(study, Filters(), page=10)
    assert [row.trial.index for row in first.rows] == list(range(10, 20)) and first.after == 19
    path.write_bytes(b"".join(rows))
    study.refresh()
    after = listed(study, Filters(), after=first.after, page=10)
    assert [row.trial.index for row in after.rows] == [20, 21, 22, 23] and after.after is None
    back = listed(study, Filters(), before=after.before, page=10)
    assert [row.trial.index for row in back.rows] == list(range(10, 20)) and back.before == 10


@pytest.mark.parametrize("state", ["", "held", "broke"])
@pytest.mark.parametrize("page", [2, 24])  # read in order until a page is full; sorted
def test_the_pages_of_a_search_are_in_the_order_of_the_list(tmp_path: Path, state: str, page: int) -> None:
    study = opened(written(tmp_path, {13: "broke", 4: "refused", 20: "broke", 22: "broke"}))
    whole = [row.trial.index for row in listed(study, Filters(state=state)).rows]
    wanted = Filters(state=state, text="repl")
    found, after, backwards = [], -1, []
    while True:
        part = listed(study, wanted, after=after, page=page)
        found += [row.trial.index for row in part.rows]
        if part.after is None:
            break
        after = part.after
    while part.before is not None:
        part = listed(study, wanted, before=part.before, page=page)
        backwards = [row.trial.index for row in part.rows] + backwards
    assert found == whole and backwards == whole[: len(backwards)] and part.n == len(whole)
    assert neighbours(study, wanted, whole[1]) == (whole[0], whole[2])


def test_cells_count_every_planned_trial_once(tmp_path: Path) -> None:
    place = written(tmp_path, {0: "broke", 1: None})
    path = tmp_path / "runs" / "small" / RESPONSES
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:8]))
    found = cells(opened(place))
    assert sum(cell.n_planned for cell in found.values()) == 24
    first = found[0, 0, False]
    assert (first.n("broke"), first.n("error"), first.n("held"), first.n_queued) == (1, 1, 2, 0)
    assert found[1, 0, False].n_queued == 4


def test_trials_that_the_plan_does_not_ask_are_in_no_count(tmp_path: Path) -> None:
    plan = msgspec.structs.replace(small_study.small_plan(), attacks=("direct", "prefill@secret"))
    place = written(tmp_path, {}, plan)
    path, grid = tmp_path / "runs" / "small" / RESPONSES, Grid(plan)
    rows = [msgspec.json.decode(line, type=Response) for line in path.read_bytes().splitlines()]
    outside = [not in_scope(plan)[plan.attacks.index(row.attack), row.index // 2 % 3] for row in rows]
    path.unlink()
    with Rows(path, Response) as out:
        out.extend(
            msgspec.structs.replace(row, exchanges=(), error="not for it", error_code=OUT_OF_SCOPE)
            if no
            else row
            for row, no in zip(rows, outside, strict=True)
        )
    (path.parent / VERDICTS).unlink()
    study = opened(place)
    assert sum(outside) == 8 and len(grid) == 24
    assert (study.progress().n_asked, study.progress().n_planned) == (16, 16)
    assert listed(study, Filters()).n == 16
    assert sum(cell.n_planned for cell in cells(study).values()) == 16
    assert not any(cell.n_queued for cell in cells(study).values())
