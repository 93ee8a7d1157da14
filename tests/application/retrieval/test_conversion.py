"""Files that hang, crash or exhaust their parser: each is a reason, and the next file is parsed."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from heredity.application.retrieval.build import Converter
from heredity.application.retrieval.documents import Limits
from heredity.application.retrieval.readers import Unreadable
from tests.support.office_files import make_docx, make_pdf, pack_docx

pytestmark = pytest.mark.slow
PAGE = b"<p>Good."
HANGING = b"<a " * 300_000  # quadratic in the standard parser


def reason_of(converter: Converter, reader: str, data: bytes) -> str:
    with pytest.raises(Unreadable) as error:
        converter.read(reader, data)
    return error.value.reason


def test_a_file_that_takes_too_long_is_stopped_and_the_next_is_parsed():
    with Converter(Limits(max_seconds=2)) as converter:
        assert reason_of(converter, "html", HANGING) == "too-slow"
        assert converter.read("html", PAGE)[0].text == "Good."


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_a_file_that_needs_too_much_memory_is_stopped_and_the_next_is_parsed():
    document = (
        b'<?xml version="1.0"?><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        b"<w:body>" + b"<w:p/>" * 400_000 + b"</w:body></w:document>"
    )
    with Converter(Limits(max_memory=200_000_000)) as converter:
        # Python itself may have no memory left to say so.
        assert reason_of(converter, "docx", pack_docx(document, {})) in ("too-much-memory", "crashed")
        assert converter.read("docx", make_docx(["Good."]))[0].text == "Good."


def test_a_parser_that_dies_costs_one_file():
    with Converter(Limits()) as converter:
        assert converter.read("html", PAGE)[0].text == "Good."
        process = converter._process
        assert process is not None
        os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()
        assert reason_of(converter, "html", PAGE) == "crashed"
        assert converter.read("html", PAGE)[0].text == "Good."


def test_closing_ends_the_process():
    converter = Converter(Limits())
    converter.read("pdf", make_pdf([["x"]]))
    process = converter._process
    assert process is not None
    converter.close()
    assert process.poll() is not None


def test_a_file_without_text_is_left_out():
    with Converter(Limits()) as converter:
        assert reason_of(converter, "text", b" \n\n ") == "no-text"
        assert reason_of(converter, "pdf", make_pdf([[]])) == "no-text"
