"""DOCX: headings, paragraphs, lists and tables, as mammoth converts them to HTML. Images are left out."""

from __future__ import annotations

import io
import zipfile
from xml.parsers.expat import ExpatError, errors

from heredity.application.retrieval.readers import TextBlock, Unit, Unreadable
from heredity.application.retrieval.readers.html import blocks_of

SUFFIXES = (".docx",)
UNIT: Unit = "paragraph"
IS_ISOLATED = True
_NO_MEMORY = errors.codes[errors.XML_ERROR_NO_MEMORY]
_OLE = b"\xd0\xcf\x11\xe0"  # an encrypted DOCX is no zip file but an OLE container


def read(data: bytes, max_unpacked: int) -> list[TextBlock]:
    """The blocks of the document, numbered in its order. Raises Unreadable for a zip bomb."""
    import mammoth

    if data.startswith(_OLE):
        raise Unreadable("encrypted")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # A member never unpacks to more than its declared size: zipfile stops there.
        n_unpacked = sum(member.file_size for member in archive.infolist())
        if any(member.flag_bits & 1 for member in archive.infolist()):
            raise Unreadable("encrypted")
    if n_unpacked > max_unpacked:
        raise Unreadable("unpacks-too-large", f"{n_unpacked:,} bytes")
    no_images = mammoth.images.img_element(lambda image: {})  # noqa: ARG005
    try:
        page = mammoth.convert_to_html(io.BytesIO(data), convert_image=no_images).value
    except ExpatError as error:
        if error.code == _NO_MEMORY:
            raise MemoryError from None
        raise
    return [
        TextBlock(block.text, number, number, block.level) for number, block in enumerate(blocks_of(page), 1)
    ]
