"""Captioned images: a folder in which each image has a text file of the same name, or a table.

The caption of `cat.png` is the first line of `cat.txt`. An image's class is its first folder below the
named one, or its entry in the table. Such a source belongs in an image corpus (corpus/images.py), not in a
text corpus.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from heredity.core import readers
from heredity.core.errors import BadInput, did_you_mean
from heredity.corpus.sources import CorpusSource, Input, Job, SkippedDocument, _files, input_of

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a caption is one line
_DRAWN = (".svg",)  # vector graphics, which are counted and not read


class CaptionedImage(NamedTuple):
    """An image, its name in the corpus, its caption and its class ("" for none)."""

    path: str
    name: str
    caption: str
    label: str


class ImagesSource(CorpusSource, frozen=True, kw_only=True):
    """captions: a table (CSV, JSON lines, Parquet) with one row per image. Its columns are `image`
    (relative to path), `text` and optionally `label`. Without a table, each image has a .txt file."""

    captions: str = ""
    image: str = "image"
    text: str = "caption"
    label: str = "class"

    def reads(self) -> tuple[str, ...]:
        return (*PICTURES, *_DRAWN)

    def jobs(self, root: Path) -> list[Job]:
        """The files that an image corpus reads."""
        if self.captions:
            return [Job(((str(root / self.captions), Path(self.captions).name),))]
        return _files.grouped(_files.files_of(self, root))

    def left_out(self, root: Path) -> Counter[str]:
        return Counter() if self.captions else super().left_out(root)

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        """The captions of a job's images."""
        for pair in self._sidecar_captions(job):
            yield pair if isinstance(pair, SkippedDocument) else pair.caption.encode()

    def pairs(self, root: Path) -> Iterator[CaptionedImage | SkippedDocument]:
        """Every image with its caption, in the order of names or of rows. Raises BadInput, UsageError."""
        for job in self.jobs(root):
            yield from (
                self._rows(root, Path(job.files[0][0])) if self.captions else self._sidecar_captions(job)
            )

    def inputs_of(self, pair: CaptionedImage) -> list[Input]:
        """The files of a pair."""
        inputs = [input_of(pair.path, pair.name)]
        if not self.captions:
            inputs.append(input_of(str(_text_of(pair.path)), str(_text_of(pair.name))))
        return inputs

    def _sidecar_captions(self, job: Job) -> Iterator[CaptionedImage | SkippedDocument]:
        for path, name in job.files:
            if Path(path).suffix.lower() in _DRAWN:
                yield SkippedDocument("drawing")
            elif not _text_of(path).is_file():
                yield SkippedDocument("no_caption")
            else:
                lines = _files.text(str(_text_of(path))).decode().splitlines() or [""]
                yield _pair(path, name, lines[0], name.split("/")[0] if "/" in name else "")

    def _rows(self, root: Path, table: Path) -> Iterator[CaptionedImage | SkippedDocument]:
        folder = root / Path(self.path).expanduser()
        for line, row in readers.rows(table):
            for column in (self.image, self.text):
                if column not in row:
                    hint = did_you_mean(column, map(str, row))
                    raise BadInput(
                        table,
                        f"no column '{column}'.{hint} Say its name in the recipe",
                        line,
                        code="unknown-key",
                    )
            name = str(row[self.image])
            if not (folder / name).is_file():
                raise BadInput(table, f"there is no image {folder / name}", line, code="unreadable-file")
            yield _pair(str(folder / name), name, str(row[self.text] or ""), str(row.get(self.label) or ""))


def _pair(path: str, name: str, caption: str, label: str) -> CaptionedImage | SkippedDocument:
    line = " ".join(_CONTROLS.sub(" ", caption).split())
    return CaptionedImage(path, name, line, label) if line else SkippedDocument("no_caption")


def _text_of(image: str) -> Path:
    return Path(image).with_suffix(".txt")


SOURCE = ImagesSource
