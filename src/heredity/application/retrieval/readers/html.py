"""HTML: headings, and the text of paragraphs, lists and tables, with its lines. No script is run.

Comments, scripts, styles and attributes are left out. Text that a page hides by its style is kept.
"""

from __future__ import annotations

from html.parser import HTMLParser

from heredity.application.retrieval.readers import TextBlock, Unit, decode

SUFFIXES = (".html", ".htm", ".xhtml")
UNIT: Unit = "line"
IS_ISOLATED = True  # the standard parser takes quadratic time on hostile pages

_SKIPPED = frozenset({"script", "style", "template", "noscript", "svg", "head", "iframe", "object"})
_BREAKS = frozenset(
    {
        "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "dialog",
        "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5",
        "h6", "header", "hr", "html", "li", "main", "nav", "ol", "option", "p", "pre", "section", "summary",
        "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
    }
)  # fmt: skip


class BlockParser(HTMLParser):
    """Collects the blocks of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[TextBlock] = []
        self._parts: list[str] = []
        self._start = self._level = self._end = 0
        self._skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in _SKIPPED and not (tag == "head" and self.blocks):
            self._skipped.append(tag)
        elif tag in _BREAKS:
            if tag == "body":  # a head that was never closed
                self._skipped.clear()
            self.finish()
            self._level = int(tag[1]) if tag[0] == "h" and tag[1:].isdigit() else self._level
        elif tag in ("td", "th") and self._parts:
            self._parts.append(" | ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _SKIPPED:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag in self._skipped:
                while self._skipped.pop() != tag:
                    pass
            return
        if tag in _BREAKS:
            self.finish()
            self._level = 0

    def handle_data(self, data: str) -> None:
        if self._skipped or not data:
            return
        if data.strip():
            line = self.getpos()[0]
            first = line + data[: len(data) - len(data.lstrip())].count("\n")
            self._start = self._start or first
            self._end = line + data.rstrip().count("\n")
        if self._start:
            self._parts.append(data)

    def finish(self) -> None:
        """End the current block."""
        text = " ".join("".join(self._parts).split()).strip(" |")
        if text:
            self.blocks.append(TextBlock(text, self._start, self._end, self._level))
        self._parts, self._start = [], 0


def read(data: bytes, max_unpacked: int) -> list[TextBlock]:  # noqa: ARG001
    """The blocks of the page, each with its lines."""
    return blocks_of(decode(data))


def blocks_of(text: str) -> list[TextBlock]:
    """The blocks of HTML text."""
    parser = BlockParser()
    parser.feed(text)
    parser.close()
    parser.finish()
    return parser.blocks
