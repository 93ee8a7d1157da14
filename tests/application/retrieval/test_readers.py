"""The readers, each on a file of its format; the hostile ones are parsed in this process here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heredity.application.retrieval import readers
from heredity.application.retrieval.build import parse
from heredity.application.retrieval.readers import Unreadable, by_suffix, load
from heredity.core import registry
from tests.support.office_files import encrypt_pdf, make_docx, make_pdf, pack_docx

NAMES = registry.names(readers.FOLDER)
MUCH = 10_000_000


def blocks(name: str, data: bytes, max_unpacked: int = MUCH):
    return load(name).read(data, max_unpacked)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=400))
def test_any_bytes_give_blocks_in_order_or_a_reason(name: str, data: bytes):
    parsed = parse(name, data, MUCH)
    assert parsed.reason in ("", *readers.REASONS)
    places = [(each.start, each.end) for each in parsed.blocks]
    assert all(1 <= start <= end for start, end in places)
    assert places == sorted(places)


def test_each_ending_has_one_reader():
    assert {by_suffix()[each] for each in (".md", ".txt", ".html", ".pdf", ".docx")} == set(NAMES)
    assert by_suffix()[""] == "text"


def test_utf16_with_a_mark_is_text_and_bytes_are_not():
    assert blocks("text", "größer\r\n\r\nzwei".encode("utf-16"))[0].text == "größer"
    for data, reason in ((b"a\0b", "binary"), (b"caf\xe9", "not-utf8")):
        with pytest.raises(Unreadable) as error:
            blocks("text", data)
        assert error.value.reason == reason


def test_markdown_knows_both_headings_and_keeps_fenced_code_whole():
    text = b"Title\n=====\n\n```\n# no heading\n\nx\n```\n## Two ##\ntext\n\n| a |\n| b |\n---\n"
    found = [(each.level, each.start, each.end) for each in blocks("markdown", text)]
    assert found == [(1, 1, 2), (0, 4, 8), (2, 9, 9), (0, 10, 10), (0, 12, 14)]


def test_html_gives_headings_and_lines_and_neither_scripts_nor_comments():
    page = b"""<html><head><title>T</title><style>p {}</style></head>
<body><h2>Prices &amp; terms</h2>
<p>It costs
 five.</p><script>alert("no")</script><!-- secret -->
<ul><li>one<li>two</ul>
<table><tr><td>a</td><td>b</td></tr></table></body></html>"""
    found = [(each.text, each.level, each.start, each.end) for each in blocks("html", page)]
    assert found == [
        ("Prices & terms", 2, 2, 2),
        ("It costs five.", 0, 3, 4),
        ("one", 0, 5, 5),
        ("two", 0, 5, 5),
        ("a | b", 0, 6, 6),
    ]


def test_a_head_that_is_never_closed_hides_no_body():
    assert blocks("html", b"<head><title>x</title><body><p>seen")[0].text == "seen"


def test_pdf_cites_the_page():
    data = make_pdf([["First page."], ["Second page.", "Its end."]])
    found = [(each.text, each.start, each.end) for each in blocks("pdf", data)]
    assert found == [("First page.", 1, 1), ("Second page.\nIts end.", 2, 2)]


def test_a_pdf_with_a_password_is_refused_and_one_that_any_viewer_opens_is_read():
    data = make_pdf([["Secret page."]])
    assert parse("pdf", encrypt_pdf(data, "word"), MUCH).reason == "encrypted"
    assert parse("pdf", encrypt_pdf(data, ""), MUCH).blocks[0].text == "Secret page."


def test_docx_gives_headings_and_paragraphs_in_order():
    data = make_docx(["Manual", "Read me.", "Then act."], headings=["Manual"])
    found = [(each.text, each.level, each.start) for each in blocks("docx", data)]
    assert found == [("Manual", 1, 1), ("Read me.", 0, 2), ("Then act.", 0, 3)]


def test_a_docx_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_unpacked():
    bomb = make_docx(["a"], extra={"word/media/zeros.bin": b"\0" * 5_000_000})
    assert len(bomb) < 50_000
    assert parse("docx", bomb, 1_000_000).reason == "unpacks-too-large"
    assert parse("docx", bomb, MUCH).blocks[0].text == "a"


def test_entities_of_a_docx_do_not_grow():
    kinds = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    document = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY e0 "ha">{kinds}]><d>&e9;</d>'
    assert parse("docx", pack_docx(document.encode(), {}), MUCH).reason == "damaged"


@pytest.mark.parametrize("name", ["pdf", "docx"])
def test_a_file_of_another_kind_is_damaged(name: str):
    assert parse(name, b"not one of these", MUCH).reason == "damaged"


def test_an_encrypted_docx_is_named_as_such():
    assert parse("docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 512, MUCH).reason == "encrypted"
