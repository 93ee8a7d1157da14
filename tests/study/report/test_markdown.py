import re
from pathlib import Path

import pytest

from heredity.study.report import markdown
from tests.support.hostile_text import NASTY
from tests.support.report_studies import make, plan


def test_every_row_of_a_table_has_as_many_cells_as_its_head(tmp_path: Path) -> None:
    rows = [line for line in markdown.render(make(tmp_path, plan(3))).splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {4, 5, 6, 10}


def test_no_word_of_an_answer_or_a_secret_is_in_it(tmp_path: Path) -> None:
    text = markdown.render(make(tmp_path, plan(), answer="unmistakable words"))
    assert "unmistakable" not in text and "PELICAN" not in text


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_name_is_only_a_name(name: str) -> None:
    text = markdown.plain(name)
    assert "\n" not in text
    assert not re.search(r"(?<!\\)[<>|`\[\]*_]", text)
    assert not re.search(r"(?<!\\)://|www\.", text)


def test_ordinary_names_stay_readable() -> None:
    assert markdown.plain("qwen2.5-coder-0.5b-instruct") == "qwen2.5-coder-0.5b-instruct"
