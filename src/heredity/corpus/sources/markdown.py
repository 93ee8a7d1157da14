"""Markdown: each file is a document, its markup kept, front matter and comments left out."""

from __future__ import annotations

import re

from heredity.corpus.sources.text import TextSource

_FRONT = re.compile(rb"\A---\r?\n.*?\r?\n(?:---|\.\.\.)[ \t]*\r?\n", re.DOTALL)
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)


class MarkdownSource(TextSource, frozen=True, kw_only=True):
    """front_matter: whether the head between --- is kept."""

    front_matter: bool = False

    def reads(self) -> tuple[str, ...]:
        return (".md", ".markdown", ".mdx")

    def document(self, whole: bytes) -> bytes:
        if not self.front_matter:
            whole = _FRONT.sub(b"", whole, count=1)
        return _COMMENT.sub(b"", whole)


SOURCE = MarkdownSource
