"""EPUB: what the book says of itself, then its chapters in their order, as HTML."""

import posixpath
import zipfile
from collections import Counter
from io import BytesIO
from urllib.parse import unquote

from data_prep.common.text import counted
from data_prep.documents.archives import check_archive
from data_prep.documents.page_encoding import html_text
from data_prep.documents.sections import Converted, NotRead, by_heading, finished

CONTAINER = "META-INF/container.xml"
ABOUT = {"Title": "title", "Authors": "creator", "Language": "language", "Publisher": "publisher", "Date": "date",
         "Description": "description", "Identifier": "identifier"}  # fmt: skip
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"


def convert_epub(data: bytes) -> Converted:
    """The chapters that are in the archive, and the names of those that are not. Raises NotRead."""
    from data_prep.documents.page_tree import as_markdown, page_tree

    check_archive(data, ".epub")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        about, chapters = _package(archive)
        left_out, missing, texts = Counter(), [], []
        for name, kind in chapters:
            if kind.startswith("image/"):
                left_out["images"] += 1
            elif name not in archive.namelist():
                missing.append(name)
            else:
                try:
                    page, _ = page_tree(html_text(archive.read(name)))
                except NotRead as error:
                    raise NotRead(error.kind, f"{name}: {error.reason}") from None
                texts.append(as_markdown(page, left_out))
    if len(missing) == len(chapters):
        raise NotRead(
            "unreadable", f"none of its {counted(len(chapters), 'chapter')} is in it: {', '.join(missing[:3])}"
        )
    if not any(map(str.strip, texts)):
        raise NotRead("empty", "no text in it")
    left_out["chapters that are not in their EPUB"] = len(missing)
    return finished(by_heading("\n\n".join([about, *texts])), left_out)._replace(missing=missing)


def _package(archive: zipfile.ZipFile) -> tuple[str, list[tuple[str, str]]]:
    """(what the book says of itself, (name in the archive, media type) of each chapter). Raises NotRead.

    Elements go by their names without a prefix, which may be any.
    """
    from defusedxml import ElementTree

    try:
        file = ElementTree.fromstring(archive.read(CONTAINER)).find(".//{*}rootfile").get("full-path")
        package = ElementTree.fromstring(archive.read(file))
    except (KeyError, ValueError, SyntaxError, AttributeError) as error:
        raise NotRead("unreadable", f"a broken .epub ({type(error).__name__}: {error})"[:200]) from None
    lines = []
    for name, element in ABOUT.items():
        values = [" ".join("".join(found.itertext()).split()) for found in package.iter(DUBLIN_CORE + element)]
        told = [*filter(None, values)]
        if told:
            lines.append(f"**{name}:** {', '.join(told) if name == 'Authors' else told[0]}")
    items = {item.get("id"): item for item in package.iterfind(".//{*}item")}
    names, chapters = {*archive.namelist()}, []
    for reference in package.iterfind(".//{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            chapters.append((str(reference.get("idref")), ""))
            continue
        href = item.get("href", "")
        # An address, or as some write it, the name itself.
        found = [posixpath.normpath(posixpath.join(posixpath.dirname(file), each)) for each in (unquote(href), href)]
        chapters.append((next((name for name in found if name in names), found[0]), item.get("media-type", "")))
    if not chapters:
        raise NotRead("unreadable", f"a broken .epub ({file} lists no chapters)")
    return "\n".join(lines), chapters
