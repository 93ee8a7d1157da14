"""Plain text: paragraphs between blank lines, without headings."""

from __future__ import annotations

from heredity.application.retrieval.readers import TextBlock, Unit, decode, paragraphs

SUFFIXES = ("", ".txt", ".text", ".log", ".rst", ".adoc", ".org")
UNIT: Unit = "line"
IS_ISOLATED = False


def read(data: bytes, max_unpacked: int) -> list[TextBlock]:  # noqa: ARG001
    """The paragraphs of the file."""
    return paragraphs(decode(data).split("\n"))
