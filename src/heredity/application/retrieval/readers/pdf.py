"""PDF: the text of each page, as pypdf extracts it. A page without text layer holds none."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from heredity.application.retrieval.readers import TextBlock, Unit, Unreadable, paragraphs

if TYPE_CHECKING:
    from pypdf import PdfReader

SUFFIXES = (".pdf",)
UNIT: Unit = "page"
IS_ISOLATED = True


def read(data: bytes, max_unpacked: int) -> list[TextBlock]:
    """The paragraphs of each page. Raises Unreadable if a password is needed."""
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not _opens_without_password(reader):
        raise Unreadable("encrypted")
    blocks: list[TextBlock] = []
    n_left = max_unpacked
    for number, page in enumerate(reader.pages, 1):
        text = page.extract_text()
        n_left -= len(text)
        if n_left < 0:
            raise Unreadable("unpacks-too-large", f"page {number}")
        blocks += (
            TextBlock(block.text, number, number)
            for block in paragraphs(text.replace("\r", "\n").split("\n"))
        )
    return blocks


def _opens_without_password(reader: PdfReader) -> bool:
    """Whether the file only restricts printing and the like, so that any viewer shows it."""
    import pypdf
    from pypdf.errors import DependencyError

    try:
        return bool(reader.decrypt("") != pypdf.PasswordType.NOT_DECRYPTED)
    except (DependencyError, NotImplementedError):  # AES, for which pypdf needs another package
        return False
