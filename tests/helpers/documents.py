"""Documents made by hand, byte by byte, and by the libraries that write them."""

import zipfile
from pathlib import Path

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def pdf(pages: list[list[str]], encrypted: bool = False, image: bool = False) -> bytes:
    """A PDF with a text layer: the lines of each page, in any script; `image`: pages that are a picture alone."""
    blocks = sorted({ord(letter) >> 8 for lines in pages for line in lines for letter in line} | {0})
    ranges = "\n".join(f"<{block:02x}00> <{block:02x}ff> <{block:02x}00>" for block in blocks)
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /A def /CMapType 2 def\n"
        f"1 begincodespacerange <0000> <ffff> endcodespacerange\n{len(blocks)} beginbfrange\n{ranges}\nendbfrange\n"
        "endcmap end end"
    )
    font = "<< /Type /Font /Subtype /Type0 /BaseFont /A /Encoding /Identity-H /DescendantFonts [4 0 R] /ToUnicode 5 0 R >>"
    inner = (
        "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /A /DW 600 /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) "
        "/Supplement 0 >> /FontDescriptor << /Type /FontDescriptor /FontName /A /Flags 4 /FontBBox [0 0 1000 1000] "
        "/ItalicAngle 0 /Ascent 800 /Descent -200 /CapHeight 700 /StemV 80 >> >>"
    )
    picture = (
        "<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>"
    )
    kids = " ".join(f"{7 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        font,
        inner,
        f"<< /Length {len(cmap)} >>\nstream\n{cmap}\nendstream",
        f"{picture}\nstream\n0\nendstream",
    ]
    for number, lines in enumerate(pages):
        shown = "".join(f"<{line.encode('utf-16-be').hex()}> Tj T*\n" for line in lines)
        content = "100 0 0 100 0 0 cm /I Do" if image else f"BT /F 12 Tf 72 720 Td 14 TL\n{shown}ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {8 + 2 * number} 0 R "
            "/Resources << /Font << /F 3 0 R >> /XObject << /I 6 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    written, starts = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        starts.append(len(written))
        written += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{start:010} 00000 n \n" for start in starts)
    lock = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'11' * 32}> /U <{'22' * 32}> /P -4 >> /ID [<33> <33>]"
    size = len(objects) + 1
    written += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R {lock if encrypted else ''} >>\n"
    return f"{written}startxref\n{written.index('xref')}\n%%EOF\n".encode("ascii")


def zipped(path: Path, members: dict[str, str | bytes], flags: int = 0, size: int | None = None) -> None:
    """An archive; `flags` and `size` are what its directory says of the first member, true or not."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        first = archive.infolist()[0]
        first.flag_bits |= flags
        first.file_size = first.file_size if size is None else size


def docx(paragraphs: list[tuple[str, str]], picture: str = "") -> dict[str, str]:
    """The parts of a Word document: (style, text) of each paragraph, and the address of a linked picture."""
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    if picture:
        body += (
            "<w:p><w:r><w:drawing><wp:inline xmlns:wp="
            '"http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"><wp:docPr id="1" name="p" descr="d"/>'
            '<a:graphic xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><a:graphicData><pic:pic xmlns:pic='
            '"http://schemas.openxmlformats.org/drawingml/2006/picture"><pic:blipFill><a:blip r:link="rId9"/></pic:blipFill>'
            "</pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing></w:r></w:p>"
        )
    names = {style for style, _ in paragraphs}
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="{name}"><w:name w:val="{name.replace("Heading", "heading ")}"/></w:style>'
        for name in sorted(names)
    )
    link = (
        f'<Relationship Id="rId9" Type="{OFFICE}/image" Target="{picture}" TargetMode="External"/>' if picture else ""
    )
    return {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{OFFICE}/styles" Target="styles.xml"/>{link}</Relationships>',
        "word/styles.xml": f'<w:styles xmlns:w="{WORD}">{styles}</w:styles>',
        "word/document.xml": f'<w:document xmlns:w="{WORD}" xmlns:r="{OFFICE}"><w:body>{body}</w:body></w:document>',
    }


def epub(chapters: list[str], head: str = "") -> dict[str, str]:
    """The parts of an EPUB: the bodies of its chapters; `head` stands before the first of them."""
    names = [f"c{number}.xhtml" for number in range(len(chapters))]
    items = "".join(f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in names)
    spine = "".join(f'<itemref idref="{name}"/>' for name in names)
    pages = {
        f"OEBPS/{name}": f"{head}<html xmlns='http://www.w3.org/1999/xhtml'><body>{body}</body></html>"
        for name, body in zip(names, chapters, strict=True)
    }
    container = (
        '<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles>'
    )
    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": f'<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">{container}</container>',
        "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        f"<dc:title>Tales</dc:title></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>",
        **pages,
    }
