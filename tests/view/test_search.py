"""What a search finds, and that the same words are marked in the transcript."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from heredity.study.storage import RESPONSES
from heredity.view.index import _WORDS
from heredity.view.queries import Filters, Search, listed, read_filters
from heredity.view.site import Site
from tests.view.conftest import opened, written

HIT = '<mark class="hit">{}</mark>'
PROMPT = (
    "<|im_start|>system\\nYou sell lanterns.<|im_end|>\\n<|im_start|>user\\nWho may <refund> it?<|im_end|>\\n"
    "<|im_start|>assistant\\n"
)


def place_with(folder: Path, prompt: str = PROMPT, answer: str = "reply"):
    """A place whose trials were asked this prompt, and whose answers have this word."""
    place = written(folder, {3: "broke"})
    path = folder / "runs" / "small" / RESPONSES
    text = path.read_text().replace('"prompt":"p"', f'"prompt":"{prompt}"')
    path.write_text(text.replace("reply", answer))
    (path.parent / "verdicts.jsonl").unlink()
    return place


@pytest.mark.parametrize("text", ["Café au lait", "ROUGE", "rouges", "rou-ge", "Straße", "İzmir", "naïve_x"])
@pytest.mark.parametrize("wanted", ["cafe", "CAFÉ", "rouge", "rou", "strasse", "straße", "izmir", "naive"])
def test_a_text_is_marked_if_and_only_if_the_index_finds_it(text: str, wanted: str) -> None:
    search = Search(wanted)
    with closing(sqlite3.connect(":memory:")) as rows:
        rows.execute(_WORDS)
        rows.execute("INSERT INTO words (rowid, said) VALUES (1, ?)", (text,))
        found = rows.execute("SELECT rowid FROM words WHERE words MATCH ?", (search.match,)).fetchall()
    assert ("<mark" in search.mark(text)) == bool(found)


def test_marks_leave_the_text_as_it_was_and_escaped() -> None:
    search = Search("order 17")
    assert search.mark("Order <b>17</b>, 170 orders") == (
        f"{HIT.format('Order')} &lt;b&gt;{HIT.format('17')}&lt;/b&gt;, {HIT.format('170')} orders"
    )
    assert Search("--").mark("<a> -- b") == "&lt;a&gt; -- b" and not Search("--")


def test_a_search_finds_what_was_asked_and_answered_and_no_name_of_a_probe(tmp_path: Path) -> None:
    study = opened(place_with(tmp_path))
    assert listed(study, Filters(text="refund")).n == 24
    assert listed(study, Filters(text="reply 7")).n == 1
    for word in ("secret", "harm", "lanterns", "im_start", "system"):
        assert listed(study, Filters(text=word)).n == 0, word


def test_a_transcript_marks_the_words_of_its_search_apart_from_the_evidence(tmp_path: Path) -> None:
    place = place_with(tmp_path)
    site, address = Site(place), f"/s/{place.studies()[0].key}/t/3"
    page = site.render(address, {"q": "refund reply lantern"})
    assert f"Who may &lt;{HIT.format('refund')}&gt; it?" in page and f"{HIT.format('reply')} 3" in page
    assert "You sell lanterns." in page  # the application's own text is not searched
    legend = '<mark class="hit">words of the search</mark>'
    assert legend in page and "evidence of the verdict" not in page
    assert "<mark" not in site.render(address)


def test_words_of_a_call_are_marked(finished: Site) -> None:
    study = opened(finished.place)
    row = next(row for row in listed(study, Filters(state="broke")).rows)
    page = finished.render(f"/s/{study.key}/t/{row.trial.index}", {"q": "find_order"})
    assert re.search(r"<b><mark class=\"hit\">find</mark>_<mark class=\"hit\">order</mark></b>", page)


def test_a_list_is_filtered_by_a_part_of_a_probes_name(tmp_path: Path) -> None:
    place = place_with(tmp_path)
    study, site = opened(place), Site(place)
    address = f"/s/{study.key}/conversations"
    page = site.render(address, {"probe": "harm/one"})
    assert page.count("data-row") == 16 and "secret/one</b>" not in page
    assert site.render(address, {"probe": "harm/one~"}).count("data-row") == 8
    assert site.render(address, {"probe": "nothing"}).count("data-row") == 0
    assert page.count('<option value="secret/one">') == 1 and 'value="harm/one"' in page
    filters = read_filters(study, {"probe": "harm/one~", "q": "reply 4"})
    assert filters.query(study) == {"probe": "harm/one~", "q": "reply 4"}
    assert [row.trial.index for row in listed(study, filters).rows] == [4]


def test_a_line_of_the_list_has_the_question_and_the_answer(tmp_path: Path) -> None:
    place = place_with(tmp_path)
    page = Site(place).render(f"/s/{place.studies()[0].key}/conversations", {"q": "refund"})
    assert page.count(f"asked</span> Who may &lt;{HIT.format('refund')}&gt; it?") == 24
    assert page.count("answered</span> reply") == 24


def test_a_line_without_an_answer_has_the_question_of_its_probe(tmp_path: Path) -> None:
    place = place_with(tmp_path, prompt="")
    page = Site(place).render(f"/s/{place.studies()[0].key}/conversations")
    assert page.count("asked</span> Say it.") == 8 and page.count("asked</span> Fold it.") == 8
