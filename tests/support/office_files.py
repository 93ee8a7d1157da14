"""Small PDF and DOCX files, whole and hostile."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from xml.sax.saxutils import escape

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_TYPES = """<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="xml" ContentType="application/xml"/>
<Override PartName="/word/document.xml"
 ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>"""
_RELATIONS = """<?xml version="1.0"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1"
 Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
 Target="word/document.xml"/></Relationships>"""
_STYLES = f"""<?xml version="1.0"?><w:styles xmlns:w="{_WORD}">
<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>"""


def make_pdf(pages: Sequence[Sequence[str]]) -> bytes:
    """A PDF with the lines of each page."""
    n = len(pages)
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(n))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {n} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * at} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    data, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    tail = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + (head + tail).encode()


def encrypt_pdf(data: bytes, password: str) -> bytes:
    """The same PDF with a password. "" opens it in any viewer and only forbids, for example, printing."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def make_docx(
    paragraphs: Sequence[str], headings: Sequence[str] = (), extra: dict[str, bytes] | None = None
) -> bytes:
    """A DOCX with these paragraphs; those in `headings` have the style of a first-level heading."""
    body = "".join(_paragraph(text, text in headings) for text in paragraphs)
    document = f'<?xml version="1.0"?><w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>'
    return pack_docx(document.encode(), extra or {})


def pack_docx(document: bytes, extra: dict[str, bytes]) -> bytes:
    """A DOCX with this document.xml and further members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _TYPES)
        archive.writestr("_rels/.rels", _RELATIONS)
        archive.writestr("word/styles.xml", _STYLES)
        archive.writestr(
            "word/_rels/document.xml.rels",
            _RELATIONS.replace('officeDocument"', 'styles"').replace("word/document.xml", "styles.xml"),
        )
        archive.writestr("word/document.xml", document)
        for name, data in extra.items():
            archive.writestr(name, data)
    return out.getvalue()


def _paragraph(text: str, is_heading: bool) -> str:
    style = '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>' if is_heading else ""
    return f"<w:p>{style}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"
