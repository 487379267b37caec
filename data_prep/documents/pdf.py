"""PDF by PDFium, the library of Chrome: the text layer page by page. Scripts, forms and attachments are not looked at."""

import re
from collections import Counter

from data_prep.documents.repeated_lines import without_repeated_lines
from data_prep.documents.sections import Converted, NotRead, Section, finished

HYPHEN = re.compile("[\x02\ufffe]\n?")  # PDFium's mark for a hyphen that divides a word at the end of a line
NOT_UNICODE = re.compile("[\ufffd\ue000-\uf8ff]")  # glyphs of fonts that do not say which characters they are
MOST_UNKNOWN = 0.3  # of the characters


def convert_pdf(data: bytes, max_pages: int) -> Converted:
    """The pages that have text. Raises NotRead for a PDF that is encrypted, scanned, broken, or has too many pages."""
    import pypdfium2
    import pypdfium2.raw

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) in (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY):
            raise NotRead("encrypted", "a password protects it") from None
        raise NotRead("unreadable", f"no complete PDF ({error})") from None
    with document:
        if len(document) > max_pages:
            raise NotRead("refused", f"{len(document):,} pages, at most {max_pages:,} are read (--max_pages)")
        pages, pictures = [], 0
        for number in range(len(document)):
            try:
                page = document[number]
                text = page.get_textpage().get_text_bounded()
            except pypdfium2.PdfiumError:
                raise NotRead("unreadable", f"page {number + 1:,} is broken") from None
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            if not text.strip():
                pictures += any(page.get_objects())
            pages.append(text)
    left_out = Counter()
    left_out["pages that are pictures alone"] = pictures
    if pictures and not any(map(str.strip, pages)):
        raise NotRead("scanned", "pictures of pages and no text layer: recognise its text first (OCR)")
    whole = "".join(pages)
    unknown = len(NOT_UNICODE.findall(whole))
    if unknown > MOST_UNKNOWN * sum(not character.isspace() for character in whole):
        raise NotRead("scanned", "its fonts do not say which characters they show: recognise its text first (OCR)")
    pages = [HYPHEN.sub("", page) for page in pages]
    pages, removed, examples = without_repeated_lines(pages)
    sections = [Section(text.strip("\n"), page) for page, text in enumerate(pages, start=1)]
    return finished(sections, left_out + removed, examples)
