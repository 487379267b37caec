"""HTML, Word and PowerPoint as Markdown, by markitdown's converters; Excel by openpyxl.

The converters are called by name: markitdown would otherwise guess the format from the content, and fetch addresses.
HTML goes through markitdown too. Of eight manuals (of Node.js, Valgrind, bzip2, libxslt, libtasn1, Underscore, Expat and
Nettle) it kept the 722 headings and the 585 blocks of code. trafilatura 2.3.1, which finds the article in a page of news,
kept 231 headings, 297 blocks of code and four fifths of the text.
"""

import re
from collections import Counter
from io import BytesIO

from data_prep.documents.archives import check_archive
from data_prep.documents.page_encoding import html_text
from data_prep.documents.sections import LONGEST, Converted, NotRead, Section, by_heading, finished

AROUND = "nav, aside, footer, button, [role=navigation], [role=search], [role=contentinfo]"
PERMALINK = ("#", "¶", "§", "")  # the text of a heading's link to itself
IMAGE = re.compile(r"!\[([^\]\n]*)\]\([^)\n]*\)")
ON_ONE_LINE = re.compile(r"^[#|].*", re.M)  # a title, a row of a table
SLIDE = re.compile(r"^<!-- Slide number: (\d+) -->$", re.M)


def convert_html(data: bytes) -> Converted:
    """A page without what stands around its text: menus, asides, the footer."""
    from data_prep.documents.page_tree import HEADINGS, as_markdown, page_tree

    (soup, title), left_out = page_tree(html_text(data)), Counter()
    mains = [main for main in soup.select("main, [role=main]") if main.get_text(strip=True)]
    everything = len(soup.get_text())
    body = mains[0] if len(mains) == 1 else soup
    for element in body.select(AROUND):
        if not element.decomposed:
            element.decompose()
    left_out["characters of menus and the like"] = everything - len(body.get_text())
    for heading in body(HEADINGS):
        for link in heading("a"):
            if link.get_text(strip=True) in PERMALINK:
                link.decompose()
    titled = any(heading.get_text(strip=True) for heading in body("h1"))
    markdown = as_markdown(body, left_out)
    if title and markdown.strip() and not titled:
        markdown = f"# {title}\n\n{markdown}"
    return finished(by_heading(markdown), left_out)


def converted_by(converter, data: bytes, ending: str) -> str:
    """The Markdown that a converter of markitdown makes of a file. Raises NotRead for one that it cannot read."""
    from markitdown import StreamInfo

    from data_prep.documents.page_tree import PLAIN

    try:
        return converter.convert(BytesIO(data), StreamInfo(extension=ending), **PLAIN).markdown
    except MemoryError:
        raise
    except Exception as error:  # of five libraries, on broken files
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise NotRead("unreadable", f"a broken {ending} ({said})") from None


def convert_docx(data: bytes) -> Converted:
    """The body of a Word document; its headers and footers are parts of their own, which nobody reads."""
    import zipfile

    from markitdown.converters import DocxConverter

    check_archive(data, ".docx")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()
    left_out = Counter()
    left_out["images"] = sum(name.startswith("word/media/") for name in names)
    left_out["header and footer parts of Word"] = sum(
        bool(re.match(r"word/(header|footer)\d", name)) for name in names
    )
    return finished(by_heading(converted_by(DocxConverter(), data, ".docx")), left_out)


def convert_pptx(data: bytes) -> Converted:
    """The slides with their notes; of pictures the description is kept."""
    from markitdown.converters import PptxConverter

    check_archive(data, ".pptx")
    text, images = IMAGE.subn(r"\1", converted_by(PptxConverter(), data, ".pptx"))
    text = ON_ONE_LINE.sub(lambda line: line[0].replace("\v", " "), text).replace("\v", "\n")  # a line break is a \v
    _, *slides = SLIDE.split(text)
    pages = [Section(slide.strip(), int(number)) for number, slide in zip(slides[::2], slides[1::2], strict=True)]
    return finished(pages, Counter({"images": images}))


def convert_xlsx(data: bytes) -> Converted:
    """Each sheet as a Markdown table, with the values that were saved; no formula is computed."""
    import openpyxl

    check_archive(data, ".xlsx")
    try:
        book = openpyxl.load_workbook(BytesIO(data), read_only=True, data_only=True, keep_links=False)
        return finished([Section(_table(sheet), heading=sheet.title) for sheet in book.worksheets])
    except (NotRead, MemoryError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise NotRead("unreadable", f"a broken .xlsx ({said})") from None


def _table(sheet) -> str:
    """The rows with a value, as wide as the widest; "" for a sheet without any."""
    sheet.reset_dimensions()  # as they are, not as the file says: a claim of a million columns is never filled
    rows, length = [], 0
    for row in sheet.iter_rows(values_only=True):
        cells = ["" if value is None else " ".join(str(value).split()).replace("|", "\\|") for value in row]
        while cells and not cells[-1]:
            cells.pop()
        length += sum(map(len, cells))
        if length > LONGEST:
            raise NotRead("refused", f"more than {LONGEST:,} characters of text: split the file")
        if cells:
            rows.append(cells)
    if not rows:
        return ""
    width = max(map(len, rows))
    if width * len(rows) > LONGEST:
        raise NotRead("refused", f"a sheet of {len(rows):,} rows and {width:,} columns: split the file")
    lines = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows]
    return "\n".join([f"## {sheet.title}", "", lines[0], "|" + " --- |" * width, *lines[1:]])
