"""Cutting blocks to chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.application.retrieval.documents import OVERLAP, WORD, cut, n_words_of
from heredity.application.retrieval.readers import TextBlock, markdown

GUIDE = b"""# Guide

Before all.

## Install

Take the wheel.

Or build it.

## Use

### On Linux

Run it.
"""


def chunks_of(data: bytes, n_words: int = 160, path: str = "guide.md"):
    return cut(path, "line", markdown.read(data, 0), n_words)


class CountedText(str):
    """A text that notes how many of its characters `count` goes through."""

    n_counted = 0

    def count(self, part: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        end = len(self) if end is None else end
        self.n_counted += end - start
        return super().count(part, start, end)


def test_the_lines_of_a_long_text_are_counted_once() -> None:
    text = CountedText("one two three\n" * 5_000)
    found = cut("a.log", "line", [TextBlock(text, 7, 5_007)], 30)
    assert text.n_counted <= 4 * len(text)
    for each in found:
        assert each.text.count("\n") == each.end - each.start
    steps = {later.start - earlier.start for earlier, later in itertools.pairwise(found)}
    assert (found[0].start, found[-1].end, steps) == (7, 5_006, {9})


def test_a_heading_begins_a_chunk_that_cites_its_lines():
    found = [(each.citation, each.heading, each.text.split("\n")[0]) for each in chunks_of(GUIDE)]
    assert found == [
        ("guide.md:1-3", "", "# Guide"),
        ("guide.md:5-9", "Guide", "## Install"),
        ("guide.md:11-15", "Guide", "## Use"),
    ]


def test_the_cited_lines_are_those_of_the_text():
    lines = GUIDE.decode().split("\n")
    for chunk in chunks_of(GUIDE):
        cited = "\n".join(lines[chunk.start - 1 : chunk.end])
        assert cited.split() == chunk.text.split()


def test_paragraphs_are_joined_up_to_the_limit_and_never_cut_below_it():
    text = "\n\n".join(f"paragraph {n} " + "word " * 8 for n in range(9)).encode()
    found = chunks_of(text, 25)
    assert [n_words_of(each.text) for each in found] == [20, 20, 20, 20, 10]


def test_a_long_paragraph_is_cut_at_a_sentence_without_overlap():
    text = " ".join(f"This is sentence {n} of it." for n in range(20))
    found = chunks_of(text.encode(), 40)
    assert len(found) > 2
    assert all(each.text.endswith(".") for each in found)
    assert " ".join(each.text for each in found) == text


def test_a_cut_inside_of_a_sentence_repeats_the_last_words():
    text = " ".join(f"w{n}" for n in range(100))
    first, second = chunks_of(text.encode(), 40)[:2]
    n_repeated = 40 // OVERLAP
    assert first.text.split()[-n_repeated:] == second.text.split()[:n_repeated]


def test_the_parts_of_a_long_paragraph_cite_their_own_lines():
    text = "\n".join(f"line {n} has words and no stop" for n in range(1, 101))
    lines = text.split("\n")
    for chunk in chunks_of(text.encode(), 40):
        assert chunk.text.split("\n")[0] in lines[chunk.start - 1]
        assert chunk.text.split("\n")[-1] in lines[chunk.end - 1]


def test_a_script_without_spaces_is_cut_too():
    found = chunks_of(("文" * 500).encode(), 100)
    assert max(len(each.text) for each in found) <= 100
    assert max(len(each.text) for each in chunks_of(b"x" * 50_000, 100)) <= 100 * 40


def test_equal_texts_of_a_file_have_ids_of_their_own_that_a_line_above_does_not_change():
    text = b"# A\n\nsame\n\n# A\n\nsame\n"
    ids = [each.id for each in chunks_of(text)]
    assert len(set(ids)) == 2
    assert [each.id for each in chunks_of(b"\n\n" + text)] == ids
    assert [each.id for each in chunks_of(text, path="other.md")] != ids


def test_a_page_and_a_paragraph_are_cited_in_words():
    blocks = [TextBlock("one", 3, 3), TextBlock("two", 4, 4)]
    assert cut("a.pdf", "page", blocks)[0].citation == "a.pdf, pages 3-4"
    assert cut("a.docx", "paragraph", blocks[:1])[0].citation == "a.docx, paragraph 3"


@given(st.lists(st.text(alphabet="ab .\n#文\t", max_size=60), max_size=20), st.integers(20, 50))
def test_no_word_is_lost_and_no_chunk_is_too_long(parts: list[str], n_words: int):
    text = "\n\n".join(parts)
    found = chunks_of(text.encode(), n_words)
    kept = "".join("".join(each.text.split()) for each in found)
    if all(n_words_of(block.text) <= n_words for block in markdown.read(text.encode(), 0)):
        assert kept == "".join(text.split())
    assert all(n_words_of(each.text) <= n_words for each in found)
    assert all(each.start <= each.end for each in found)


@pytest.mark.parametrize("text", ["", "   ", "..."])
def test_words_are_counted_as_they_are_cut(text: str):
    assert n_words_of(text) == len(WORD.findall(text))
