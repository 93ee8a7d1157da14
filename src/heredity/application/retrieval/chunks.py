"""Cut the blocks of a file to chunks: by headings, then by paragraphs, each of a bounded number of words.

Promises: a heading begins a new chunk. Only a paragraph that is longer than a chunk is cut, at the end of a
sentence if there is one in its second half. Otherwise the next part repeats the last words, so that a phrase
at the cut is whole in one of them.
Leaves to others: reading files (readers/), and finding chunks (index.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from heredity.application.retrieval.readers import TextBlock, Unit
from heredity.core.records import Record, digest

WORDS = 160  # of a chunk: about 220 tokens of English, and MiniLM reads 256
OVERLAP = 8  # a cut that ends no sentence repeats this part of a chunk: 1/8
# A word; a character of a script without spaces; or 40 characters of something that never ends.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{1,40}"
)
_SENTENCE_END = re.compile(r"[.!?。！？][\"')\]]*$")


class Chunk(Record, frozen=True):
    """A passage of a file. `id` is a digest over path and text, and over which of equal ones it is."""

    id: str
    path: str  # below the indexed folder, with "/"
    heading: str  # the headings above it, "Install > On Linux"; "" for none
    start: int  # its place in `unit`, from 1
    end: int
    unit: Unit
    text: str

    @property
    def citation(self) -> str:
        """The file and the place, such as `guide.md:12-30` or `manual.pdf, page 3`."""
        if self.unit == "line":
            return f"{self.path}:{_span(self.start, self.end)}"
        plural = "s" if self.end > self.start else ""
        return f"{self.path}, {self.unit}{plural} {_span(self.start, self.end)}"

    @property
    def searched(self) -> str:
        """The text that is indexed: the headings above, which often name the subject, and the text."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


class Match(NamedTuple):
    """A chunk that matches. `score` compares only within one search."""

    chunk: Chunk
    score: float


def cut(path: str, unit: Unit, blocks: Sequence[TextBlock], n_words: int = WORDS) -> list[Chunk]:
    """The chunks of a file in its order."""
    chunks: list[Chunk] = []
    seen: dict[str, int] = {}
    for heading, part in _parts(blocks, n_words):
        text = "\n\n".join(block.text for block in part)
        nth = seen[text] = seen.get(text, 0) + 1
        name = digest([path, text, nth])[:16]
        chunks.append(Chunk(name, path, heading, part[0].start, part[-1].end, unit, text))
    return chunks


def _parts(blocks: Sequence[TextBlock], n_words: int) -> Iterator[tuple[str, list[TextBlock]]]:
    """The blocks of each chunk, and the headings above."""
    above: list[TextBlock] = []
    part: list[TextBlock] = []
    n_in_part, has_text = 0, False
    heading = ""
    for block in _split(blocks, n_words):
        n_here = n_words_of(block.text)
        is_new_section = bool(block.level) and has_text
        if part and (is_new_section or n_in_part + n_here > n_words):
            yield heading, part
            part, n_in_part, has_text = [], 0, False
        if block.level:
            above = [*(each for each in above if each.level < block.level), block]
        if not part:
            # A chunk that begins with its heading repeats it in its text.
            heading = " > ".join(_title(each) for each in (above[:-1] if block.level else above))
        part.append(block)
        n_in_part, has_text = n_in_part + n_here, has_text or not block.level
    if part:
        yield heading, part


def n_words_of(text: str) -> int:
    """The number of words, as WORD counts them."""
    return sum(1 for _ in WORD.finditer(text))


def _split(blocks: Sequence[TextBlock], n_words: int) -> Iterator[TextBlock]:
    """The blocks, each that is longer than `n_words` in parts."""
    for block in blocks:
        if len(block.text) <= n_words:  # it cannot have more words than characters
            yield block
            continue
        spans = [match.span() for match in WORD.finditer(block.text)]
        if len(spans) <= n_words:
            yield block
            continue
        is_lines = block.end > block.start and block.text.count("\n") == block.end - block.start
        start, counted = block.start, 0  # the line of the character at `counted`
        for first, last in _windows(block.text, spans, n_words):
            begin, end = spans[first][0], spans[last][1]
            if is_lines:
                start, counted = start + block.text.count("\n", counted, begin), begin
                yield TextBlock(block.text[begin:end], start, start + block.text.count("\n", begin, end))
            else:
                yield TextBlock(block.text[begin:end], block.start, block.end)


def _windows(text: str, spans: Sequence[tuple[int, int]], n_words: int) -> Iterator[tuple[int, int]]:
    """The first and the last word of each part."""
    first = 0
    while len(spans) - first > n_words:
        last = first + n_words - 1
        ends = (at for at in range(last, first + n_words // 2, -1) if _ends_sentence(text, spans[at]))
        end = next(ends, None)
        yield first, last if end is None else end
        first = last + 1 - n_words // OVERLAP if end is None else end + 1
    yield first, len(spans) - 1


def _ends_sentence(text: str, span: tuple[int, int]) -> bool:
    return _SENTENCE_END.search(text, *span) is not None


def _title(block: TextBlock) -> str:
    """A heading without its marks, on one line of at most 120 characters."""
    first = block.text.split("\n")[0]
    return " ".join(first.strip().strip("#").split())[:120]


def _span(start: int, end: int) -> str:
    return f"{start}-{end}" if end > start else str(start)
