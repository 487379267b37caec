"""Documents of all kinds through the command: good ones, hostile ones, and what is said of each."""

import json
import socket
import sys
from pathlib import Path

import pytest
from helpers.data import BELLE, needs_data
from helpers.documents import docx, epub, pdf, zipped

from data_prep import clean_corpus, read_documents
from data_prep.common.errors import InputError
from data_prep.common.files import read_json, read_jsonl
from data_prep.documents import endings
from data_prep.readers import documents as reader
from data_prep.readers.kinds import classify

for library in ("markitdown", "openpyxl", "pypdfium2"):
    pytest.importorskip(library, reason="needs the extra documents")

GUIDE = "# Guide\n\n## Install\nUnpack the box.\n\n```bash\n# no heading\n```\n\n## Use\nTurn the key.\n"
INSTALL = {
    "text": "# Guide\n\n## Install\nUnpack the box.\n\n```bash\n# no heading\n```\n",
    "heading": "Guide > Install",
}
PAPER = "=====\nPaper\n=====\n\nAbstract of it.\n\nMethod\n------\nWe looked.\n\n.. include:: /etc/passwd\n"
SENTENCES = [
    "Ships sail at dawn.",
    "Rain fell on the hill.",
    "A cat slept all day.",
    "Bread was cheap then.",
    "He ran home.",
]
NAIL = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
HOSTILE = {
    "bomb.docx": ("refused", "unpacks to 536,8"),
    "endless.pdf": ("refused", "10,000 pages, at most 5,000 are read (--max_pages)"),
    "macros.docx": ("refused", "macros in it (word/vbaProject.bin): save it without them"),
    "enabled.docx": ("refused", "macros in it: save it without them"),
    "old.docm": ("refused", "a file with macros: save it without them"),
    "old.doc": ("refused", "the format before Office 2007: save it as .docx"),
    "entities.docx": ("refused", "XML entities or a document type in word/document.xml"),
    "sixteen.docx": ("refused", "XML entities or a document type in word/document.xml"),
    "ebcdic.docx": ("unreadable", "word/document.xml is not XML in UTF-8 or UTF-16"),
    "entities.epub": ("refused", "XML entities or a document type in OEBPS/c0.xhtml"),
    "locked.pdf": ("encrypted", "a password protects it"),
    "locked.xlsx": ("encrypted", "a password protects it"),
    "locked.epub": ("encrypted", "a password protects it"),
    "drm.epub": ("encrypted", "its text is encrypted (META-INF/encryption.xml)"),
    "scan.pdf": ("scanned", "pictures of pages and no text layer: recognise its text first (OCR)"),
    "empty.txt": ("empty", "nothing in it"),
    "blank.docx": ("empty", "no text in it"),
    "cut.pdf": ("unreadable", "no complete PDF"),
    "cut.docx": ("unreadable", "no complete zip archive"),
    "lies.docx": ("unreadable", "no complete zip archive"),
    "notword.docx": ("unreadable", "a broken .docx"),
    "latin.txt": ("unreadable", "byte 3 is not utf-8: save the file as UTF-8"),
    "binary.md": ("unreadable", "zero bytes in it: not a text"),
    "gbk.html": ("unreadable", "it says that it is gb18030, and is not: save the file as UTF-8"),
    "v3.ipynb": ("unreadable", "no notebook of nbformat 4: open it in Jupyter and save it"),
    "half.ipynb": ("unreadable", "half a surrogate pair in it: its text is not Unicode"),
}


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["read_documents", *map(str, words)])
    read_documents.main()


def rows_in(output: Path) -> list[dict]:
    files = [path for path in (output / "documents.jsonl", output / "documents_heldout.jsonl") if path.exists()]
    return [row for path in files for row in read_jsonl(path)]


def write_good(folder: Path) -> None:
    import openpyxl
    import pptx

    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE)
    (folder / "copy.md").write_text(GUIDE + "\n# More\nOnly here.\n")
    (folder / "nail.txt").write_text(f"{NAIL} nineteen twenty\n")
    (folder / "snail.txt").write_text(f"{NAIL} nineteen twentyfive\n")
    (folder / "paper.rst").write_text(PAPER)
    (folder / "rfc.txt").write_text(
        "\f".join(f"RFC 1\n\n{line}\n\nRoe [Page {page}]\n" for page, line in enumerate(SENTENCES))
    )
    cells = [
        {"cell_type": "markdown", "source": ["# Plot\n", "It shows."]},
        {"cell_type": "code", "source": "plot(1)", "outputs": [{"data": {"image/png": "AAAA"}}]},
    ]
    (folder / "book.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    zipped(folder / "word.docx", docx([("Heading1", "Letter"), ("Normal", "Dear *all* of you_all,")]))
    zipped(folder / "tales.epub", epub(["<h1>One</h1><p>Once.</p>", "<h1>Two</h1><p>Twice.</p>"], "<!DOCTYPE html>"))
    book = openpyxl.Workbook()
    book.active.title = "Prices"
    for row in (["item", "price"], ["nut|bolt", 3], [None, None], ["sum", "=SUM(B2:B3)"]):
        book.active.append(row)
    book.create_sheet("Nothing")
    book.save(folder / "table.xlsx")
    deck = pptx.Presentation()
    for title in ("First", "Second"):
        deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = title
    deck.slides[1].notes_slide.notes_text_frame.text = "Say more."
    deck.save(folder / "deck.pptx")
    pages = [["Acme Report", line, "Acme Report", f"{number} of 5"] for number, line in enumerate(SENTENCES, start=1)]
    pages = [[line.replace("He ran home.", "So did I. 猫") for line in page] for page in pages]
    (folder / "report.pdf").write_bytes(pdf(pages))
    (folder / "picture.png").write_bytes(b"\x89PNG")


def write_hostile(folder: Path, address: str) -> None:
    folder.mkdir()
    word = docx([("Normal", "text")])
    document = word["word/document.xml"]
    attack = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "{address}">]>' + document.replace("text", "&x;")
    zipped(folder / "bomb.docx", word, size=1 << 29)
    zipped(folder / "lies.docx", word, size=9)
    (folder / "endless.pdf").write_bytes(pdf([[]] * 10_000))
    zipped(folder / "macros.docx", word | {"word/vbaProject.bin": "x"})
    types = word["[Content_Types].xml"].replace(
        "openxmlformats-officedocument.wordprocessingml.document", "ms-word.document.macroEnabled"
    )
    zipped(folder / "enabled.docx", word | {"[Content_Types].xml": types})
    zipped(folder / "old.docm", word)
    (folder / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0")
    zipped(folder / "entities.docx", word | {"word/document.xml": attack})
    zipped(folder / "sixteen.docx", word | {"word/document.xml": attack.encode("utf-16")})
    zipped(folder / "ebcdic.docx", word | {"word/document.xml": attack.encode("cp037")})
    zipped(folder / "entities.epub", epub(["<p>&x;</p>"], f'<!DOCTYPE html [<!ENTITY x SYSTEM "{address}">]>'))
    (folder / "locked.pdf").write_bytes(pdf([["secret"]], encrypted=True))
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 504 + "EncryptedPackage".encode("utf-16-le")
    (folder / "locked.xlsx").write_bytes(ole)
    zipped(folder / "locked.epub", epub(["<p>a</p>"]), flags=1)
    drm = '<encryption><CipherReference URI="OEBPS/c0.xhtml"/></encryption>'
    zipped(folder / "drm.epub", epub(["<p>a</p>"]) | {"META-INF/encryption.xml": drm})
    (folder / "scan.pdf").write_bytes(pdf([[], []], image=True))
    (folder / "empty.txt").write_text(" \n")
    zipped(folder / "blank.docx", docx([("Normal", "")]))
    (folder / "cut.pdf").write_bytes(b"%PDF-1.4\n1 0 obj")
    zipped(folder / "whole.zip", word)
    (folder / "cut.docx").write_bytes((folder / "whole.zip").read_bytes()[:400])
    (folder / "whole.zip").unlink()
    zipped(folder / "notword.docx", {"a.txt": "a"})
    (folder / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (folder / "binary.md").write_bytes(b"a\0b")
    (folder / "gbk.html").write_bytes(b"<meta charset=gbk><p>\xff\xff</p>")
    (folder / "v3.ipynb").write_text(json.dumps({"worksheets": []}))
    cell = '{"cell_type": "markdown", "source": "\\ud800"}'
    (folder / "half.ipynb").write_text(f'{{"cells": [{cell}]}}')


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of good and hostile documents, read once: (folder, output, what was printed, a server nobody may call)."""
    folder = tmp_path_factory.mktemp("documents")
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        write_good(folder / "good")
        write_hostile(folder / "hostile", address)
        (folder / "good" / "page.html").write_text(
            f"<head><title>t</title><script src={address}></script></head><body><nav>Home About</nav><main><h1>Page"
            f"<a href=#p>¶</a></h1><p>See <a href={address}>this_one</a>.<img src={address} alt=map></p><iframe "
            f"src={address}></iframe></main><footer>Imprint</footer></body>"
        )
        zipped(folder / "good" / "linked.docx", docx([("Normal", "A picture is linked.")], picture=address))
        printed = folder / "printed.txt"
        with printed.open("w") as out, patch.context() as inner:
            inner.setattr(sys, "stdout", out)
            run(patch, folder / "good", folder / "hostile", "--output_dir", folder / "out", "--seed", 3)
        server.setblocking(False)
        yield folder, folder / "out", printed.read_text(), server


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("guide.md", []),  # copy.md comes first
        ("copy.md", [INSTALL, {"text": "## Use\nTurn the key.\n", "heading": "Guide > Use"}, {"text": "# More\nOnly here.", "heading": "More"}]),
        ("nail.txt", [{"text": f"{NAIL} nineteen twenty\n"}]),
        ("snail.txt", []),
        ("paper.rst", [
            {"text": "=====\nPaper\n=====\n\nAbstract of it.\n", "heading": "Paper"},
            {"text": "Method\n------\nWe looked.\n\n.. include:: /etc/passwd", "heading": "Paper > Method"},
        ]),
        ("rfc.txt", [{"text": SENTENCES[4], "page": 5}]),  # report.pdf has the others
        ("book.ipynb", [{"text": "# Plot\nIt shows.\n\n```python\nplot(1)\n```", "heading": "Plot"}]),
        ("word.docx", [{"text": "# Letter\n\nDear *all* of you_all,", "heading": "Letter"}]),
        ("tales.epub", [
            {"text": "**Title:** Tales"},
            {"text": "# One\n\nOnce.", "heading": "One"},
            {"text": "# Two\n\nTwice.", "heading": "Two"},
        ]),
        ("table.xlsx", [{"text": "## Prices\n\n| item | price |\n| --- | --- |\n| nut\\|bolt | 3 |\n| sum |  |", "heading": "Prices"}]),
        ("deck.pptx", [{"text": "# First", "page": 1}, {"text": "# Second\n\n### Notes:\nSay more.", "page": 2}]),
        ("report.pdf", [
            *({"text": line, "page": page} for page, line in enumerate(SENTENCES[:4], start=1)),
            {"text": "So did I. 猫", "page": 5},
        ]),
        ("page.html", [{"text": "# Page\n\nSee this_one.", "heading": "Page"}]),
        ("linked.docx", [{"text": "A picture is linked."}]),
    ],
)  # fmt: skip
def test_the_sections_of_a_file(made, name, expected):
    folder, output, *_ = made
    path = str(folder / "good" / name)
    found = [row for row in rows_in(output) if row["file"] == path]
    strip = [{**row, "text": row["text"].strip()} for row in found]
    assert strip == [{"file": path, **row, "text": row["text"].strip()} for row in expected]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_read_is_named_with_its_reason(made, name):
    folder, output, *_ = made
    (entry,) = [each for each in read_json(output / "report.json")["not_read"] if Path(each["file"]).name == name]
    kind, reason = HOSTILE[name]
    assert (entry["file"], entry["kind"]) == (str(folder / "hostile" / name), kind) and entry["reason"].startswith(
        reason
    )


def test_nothing_is_fetched(made):
    with pytest.raises(BlockingIOError):
        made[3].accept()


def test_the_tallies_and_the_last_line(made):
    _, output, printed, _ = made
    report = read_json(output / "report.json")
    assert report["files"] == 14 + len(HOSTILE) and report["files_read"] == 14
    assert len(report["not_read"]) == len(HOSTILE)
    # five pages of rfc.txt and of report.pdf: a header each; the footer "Acme Report" below which the number stands
    assert (report["left_out"]["headers"], report["left_out"]["footers"], report["left_out"]["page numbers"]) == (
        10,
        10,
        5,
    )
    assert report["left_out"]["notebook outputs"] == 1 and report["left_out"]["images"] == 1
    # guide.md's two sections, four sentences of rfc.txt; snail.txt is nearly nail.txt
    assert (report["duplicates"]["exact"], report["duplicates"]["near"]) == (6, 1)
    assert [Path(file).name for file in report["duplicates"]["documents"]] == ["guide.md", "snail.txt"]
    rows = rows_in(output)
    assert sum(report[part]["rows"] for part in ("train", "heldout")) == len(rows)
    assert sum(report[part]["characters"] for part in ("train", "heldout")) == sum(len(row["text"]) for row in rows)
    lines = printed.splitlines()
    assert "1 file not read: .png (1)" in lines[0]
    (scanned,) = [line for line in lines if line.startswith("1 file scanned: ")]
    assert "scan.pdf (pictures of pages and no text layer" in scanned
    assert (
        f"{len(rows) + 7} rows = {report['train']['rows']} of " in lines[-1] and f"{output}/report.json" in lines[-1]
    )


def test_a_document_is_on_one_side(made):
    _, output, *_ = made
    sides = [
        {row["file"] for row in read_jsonl(output / name)} for name in ("documents.jsonl", "documents_heldout.jsonl")
    ]
    assert all(sides) and not sides[0] & sides[1]
    assert sorted(sides[1]) == read_json(output / "report.json")["heldout"]["files"]


def test_what_is_written_is_a_corpus_as_it_is(made, monkeypatch, tmp_path):
    _, output, *_ = made
    rows = list(read_jsonl(output / "documents.jsonl"))
    assert {classify(row) for row in rows} == {"document"}
    assert list(reader.read_documents(output / "documents.jsonl")) == [row["text"] for row in rows]
    words = [
        "--corpus",
        output / "documents.jsonl",
        "--quality",
        "none",
        "--num_workers",
        1,
        "--output_dir",
        tmp_path / "c",
    ]
    monkeypatch.setattr(sys, "argv", ["clean_corpus", *map(str, words)])
    clean_corpus.main()
    assert [row["text"] for row in read_jsonl(tmp_path / "c" / "documents.jsonl")] == [row["text"] for row in rows]


def texts_of(monkeypatch, folder: Path) -> dict[str, str]:
    """{file name: its text, or the kind and the reason why it was not read} of a folder, by the command."""
    output = folder.parent / "out"
    run(monkeypatch, folder, "--output_dir", output, "--fraction", 0, "--threshold", 1, "--rows", "document")
    report = read_json(output / "report.json")
    assert report["duplicates"]["exact"] == 0
    refused = {Path(each["file"]).name: f"{each['kind']}: {each['reason']}" for each in report["not_read"]}
    return {Path(row["file"]).name: row["text"] for row in rows_in(output)} | refused


def test_a_page_has_the_encoding_that_browsers_take_for_it(monkeypatch, tmp_path):
    many = b"x" * 5000
    pages = {
        "latin": (b"<meta charset=iso-8859-1><p>\x93it\x92s\x94 \x80 caf\xe9 1", "“it’s” € café 1"),
        "latin1": (b"<meta charset=latin1><p>\x93it\x92s\x94 2", "“it’s” 2"),
        "ascii": (b"<meta charset='us-ascii'><p>\x93it\x92s\x94 3", "“it’s” 3"),
        "turkish": (b"<meta charset=iso-8859-9><p>\xfd\x80", "ı€"),
        "japanese": (b"<meta charset=x-sjis><p>\x82\xa0\x87\x40", "あ①"),
        "korean": (b"<meta charset=euc-kr><p>\x8c\xd9", "뚖"),
        "sixteen": (b"<meta charset=utf-16><p>\xc3\xa9 4", "é 4"),
        "marked": ("<meta charset=latin1><p>é 5".encode("utf-16"), "é 5"),
        "xml": (b"<?xml version='1.0' encoding='ISO-8859-1'?><html><body><p>\xe9 6</p></body></html>", "é 6"),
        "comment": (b"<!-- <meta charset=big5> --><meta charset=latin1><p>\xe9 7", "é 7"),
        "late": (b"<head><script>" + many + b"</script><meta charset=latin1><body><p>\xe9 8", "é 8"),
        "code": (b"<body><pre>&lt;meta charset=latin1></pre><p>\xc3\xa9 9", "```\n<meta charset=latin1>\n```\n\né 9"),
        "odd": (b"<meta charset=hex><p>61", "unreadable: it says that it is hex, and is not: save the file as UTF-8"),
    }
    (tmp_path / "pages").mkdir()
    for name, (content, _) in pages.items():
        (tmp_path / "pages" / f"{name}.html").write_bytes(content)
    assert texts_of(monkeypatch, tmp_path / "pages") == {f"{name}.html": text for name, (_, text) in pages.items()}


def test_a_page_without_its_optional_end_tags_keeps_its_text_and_form(monkeypatch, tmp_path):
    table = "<table><thead><tr><th>a<th>b<tbody><tr><td>1<td>x|y<tr><td>2<td><table><tr><td>in</table></table>"
    pages = {
        "head": ("<html><head><title>T</title><meta charset=utf-8><body><h1>A</h1><p>text", "# A\n\ntext"),
        "no_body": ("<head><title>T</title><p>alone", "# T\n\nalone"),
        "outside": ("<html><p>before<body><p>in it</body><p>after</html>", "before\n\nin it\n\nafter"),
        "items": (
            "<ul><li>one<li>two<ul><li>deep<li>deeper</ul><li>three</ul>",
            "* one\n* two\n  + deep\n  + deeper\n* three",
        ),
        "terms": ("<dl><dt>c<dd>first<dt>d<dd>second</dl>", "c\n:   first\n\nd\n:   second"),
        "table": (table, "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n| 2 | |  | | --- | | in | |"),
        "many": ("<h1>M</h1>" + "<p>x" * 2000 + "<h2>N</h2><p>y", "# M\n\n" + "x\n\n" * 2000 + "## N\n\ny"),
        "blocks": ("<details><summary>S</summary>body</details><center>C</center>D", "S\n\nbody\n\nC\n\nD"),
        "noscript": ("<p>e<noscript><p>Please enable it</noscript>", "e"),
        "icon": ("<title>Real</title><svg><title>icon</title></svg><h1><img src=a></h1><p>f", "# Real\n\nf"),
        "drawn": ("<svg><title>icon</title></svg><p>g", "g"),
        "marks": ("<?php echo 1 ?><!DOCTYPE html><!-- c --><p>h<![CDATA[ i]]>", "h i"),
    }
    (tmp_path / "pages").mkdir()
    for name, (content, _) in pages.items():
        (tmp_path / "pages" / f"{name}.html").write_text(content, encoding="utf-8")
    assert texts_of(monkeypatch, tmp_path / "pages") == {f"{name}.html": text for name, (_, text) in pages.items()}


def test_a_book_is_read_by_whatever_prefix_and_what_it_lacks_is_named(monkeypatch, tmp_path, capsys):
    whole = epub(["<h1>One</h1><p>Once.</p>", "<h1>Two</h1><p>Twice.</p>"])
    opf = whole["OEBPS/book.opf"]
    prefixed = (
        opf.replace('xmlns="', 'xmlns:opf="').replace("<dc:", "<d:").replace("</dc:", "</d:").replace(":dc=", ":d=")
    )
    for tag in ("package", "metadata", "manifest", "item ", "spine", "itemref"):
        prefixed = prefixed.replace(f"<{tag}", f"<opf:{tag}").replace(f"</{tag}", f"</opf:{tag}")
    container = (
        whole["META-INF/container.xml"].replace("<", "<o:").replace("<o:/", "</o:").replace("xmlns=", "xmlns:o=")
    )
    books = {
        "prefixed": whole
        | {"OEBPS/book.opf": prefixed.replace("Tales", "Fables"), "META-INF/container.xml": container},
        "lacking": {name: part for name, part in whole.items() if name != "OEBPS/c0.xhtml"},
        "unlisted": whole | {"OEBPS/book.opf": opf.replace('<item id="c1', '<item id="d1').replace("Tales", "Lists")},
        "bare": {name: part for name, part in whole.items() if not name.startswith("OEBPS/c")},
        "spineless": whole | {"OEBPS/book.opf": opf.replace("itemref", "thing")},
        "pictures": epub(["<img src='a.png'/>"]),
        "latin": epub(["<p>caf\xe9</p>"]),
        "unpacked": {name: part for name, part in whole.items() if name != "META-INF/container.xml"},
    }
    chapter = books["latin"]["OEBPS/c0.xhtml"]
    books["latin"]["OEBPS/c0.xhtml"] = f"<?xml version='1.0' encoding='iso-8859-1'?>{chapter}".encode("latin-1")
    (tmp_path / "books").mkdir()
    for name, parts in books.items():
        zipped(tmp_path / "books" / f"{name}.epub", parts)
    assert texts_of(monkeypatch, tmp_path / "books") == {
        "prefixed.epub": "**Title:** Fables\n\n# One\n\nOnce.\n\n# Two\n\nTwice.",
        "lacking.epub": "**Title:** Tales\n\n# Two\n\nTwice.",
        "unlisted.epub": "**Title:** Lists\n\n# One\n\nOnce.",
        "latin.epub": "**Title:** Tales\n\ncafé",
        "bare.epub": "unreadable: none of its 2 chapters is in it: OEBPS/c0.xhtml, OEBPS/c1.xhtml",
        "spineless.epub": "unreadable: a broken .epub (OEBPS/book.opf lists no chapters)",
        "pictures.epub": "empty: no text in it",
        "unpacked.epub": "unreadable: a broken .epub (KeyError: \"There is no item named 'META-INF/container.xml' in the archive\")",
    }
    report = read_json(tmp_path / "out" / "report.json")
    lacking, unlisted = (str(tmp_path / "books" / f"{name}.epub") for name in ("lacking", "unlisted"))
    assert report["missing_parts"] == [
        {"file": lacking, "missing": ["OEBPS/c0.xhtml"]},
        {"file": unlisted, "missing": ["c1.xhtml"]},
    ]
    assert report["left_out"] == {"chapters that are not in their EPUB": 2}
    out = capsys.readouterr().out
    assert f"2 files incomplete: {lacking} (OEBPS/c0.xhtml), {unlisted} (c1.xhtml)\n" in out
    assert "left out: 2 chapters that are not in their EPUB\n" in out


def test_a_line_break_in_a_slide_does_not_join_two_words(monkeypatch, tmp_path):
    import pptx

    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "First\vline", "one\vtwo\nthree"
    table = slide.shapes.add_table(2, 1, 0, 10**7, 100, 100).table
    table.cell(0, 0).text, table.cell(1, 0).text = "a\vb", "c"
    (tmp_path / "decks").mkdir()
    deck.save(tmp_path / "decks" / "deck.pptx")
    text = "# First line\none\ntwo\nthree\n| a b |\n| --- |\n| c |"
    assert texts_of(monkeypatch, tmp_path / "decks") == {"deck.pptx": text}


def write_notes(folder: Path, numbers) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        text = "".join(
            f"# {part} of {number}\n{number * part} {'abcdefghij'[number % 10] * (number + part)}\n\n"
            for part in (1, 2)
        )
        (folder / f"{number}.md").write_text(text)


def test_a_held_out_document_stays_held_out_when_others_come(monkeypatch, tmp_path):
    held = []
    for numbers, seed in ((range(3, 33), 0), (range(3, 43), 0), (range(3, 43), 1)):
        write_notes(tmp_path / "notes", numbers)
        output = tmp_path / f"out{len(held)}"
        run(
            monkeypatch,
            tmp_path / "notes",
            "--output_dir",
            output,
            "--fraction",
            0.3,
            "--seed",
            seed,
            "--rows",
            "document",
        )
        assert len(rows_in(output)) == len(numbers)  # a row for each document
        held.append({Path(row["file"]).name for row in read_jsonl(output / "documents_heldout.jsonl")})
    assert held[0] == {name for name in held[1] if int(name[:-3]) < 33} and held[1] != held[2]


def test_too_few_held_out_documents_are_told(monkeypatch, capsys, tmp_path):
    write_notes(tmp_path / "notes", range(80))
    run(monkeypatch, tmp_path / "notes", "--output_dir", tmp_path / "few")
    told = ": from 20 on eval.adaptation can show a difference; --fraction 0.32\n"  # 25 of 80
    held = read_json(tmp_path / "few" / "report.json")["heldout"]["documents"]
    assert 0 < held < 20 and f"{held} documents held out{told}" in capsys.readouterr().out
    run(monkeypatch, tmp_path / "notes", "--output_dir", tmp_path / "enough", "--fraction", 0.32)
    assert read_json(tmp_path / "enough" / "report.json")["heldout"]["documents"] >= 20
    assert "eval.adaptation" not in capsys.readouterr().out


def test_two_documents_are_split_however_small_the_fraction(monkeypatch, tmp_path):
    write_notes(tmp_path / "notes", (3, 4))
    run(monkeypatch, tmp_path / "notes", "--output_dir", tmp_path / "out", "--fraction", 1e-9)
    report = read_json(tmp_path / "out" / "report.json")
    assert (report["train"]["documents"], report["heldout"]["documents"]) == (1, 1)
    assert (report["train"]["rows"], report["heldout"]["rows"]) == (2, 2)


def test_what_cannot_be_done_leaves_nothing(monkeypatch, tmp_path):
    write_notes(tmp_path / "notes", (3,))
    (tmp_path / "notes" / "empty.md").write_text("")
    (tmp_path / "there").mkdir()
    alone, empty, data = tmp_path / "notes" / "3.md", tmp_path / "notes" / "empty.md", tmp_path / "a.json"
    data.write_text("{}")
    for words, message in [
        ([alone], "found 1 document with text of its own, .*3.md; expected at least 2.*--fraction 0"),
        ([empty], r"no text in 1 file:\n  1 file empty: .*empty.md \(nothing in it\)"),
        ([data], r"a.json: found the ending '.json'; expected .txt, .md, .*\.pdf"),
        ([alone, "--fraction", 1], "--fraction 1.0: expected at least 0 and less than 1"),
        ([alone, "--time_limit", 0], "--time_limit 0.0: expected more than 0"),
        ([alone, "--output_dir", tmp_path / "there"], "there: is there already"),
        (["hf://a/b"], "hf://a/b: found a data set of the Hub; expected files"),
    ]:
        with pytest.raises(InputError, match=message):
            run(monkeypatch, "--output_dir", tmp_path / "out", *words)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(read_documents, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        run(monkeypatch, alone, "--output_dir", tmp_path / "out", "--fraction", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "notes", "there"]


def test_without_the_extra_one_line_says_what_needs_it(monkeypatch, tmp_path):
    write_notes(tmp_path / "notes", (3, 4))
    for name in ("a.pdf", "b.pdf", "c.docx"):
        (tmp_path / "notes" / name).write_text("x")
    monkeypatch.setattr(endings.importlib.util, "find_spec", lambda name: None)
    message = r"^3 files of 5 cannot be read without the extra `documents`: \.pdf \(2\), \.docx \(1\); pip install -e '\.\[documents\]', or"
    with pytest.raises(InputError, match=message):
        run(monkeypatch, tmp_path / "notes", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(monkeypatch, tmp_path / "notes" / "*.md", "--output_dir", tmp_path / "out")


@needs_data
def test_chinese_documents(monkeypatch, tmp_path):
    """Answers of a public data set, as Markdown, a page in GBK, a PDF and a Word document."""
    told = [
        turn["value"].strip()
        for row in json.loads(BELLE.read_text(encoding="utf-8"))[:60]
        for turn in row["conversations"]
    ]
    long = [text for text in told if "\n" not in text and 30 < len(text) < 60 and not {*"<>&*#_`"} & {*text}]
    parts = [long[0:3], long[3:6], long[6:9], long[9:12]]
    assert all(len(part) == 3 for part in parts)
    (tmp_path / "a.md").write_text("# 问答\n\n" + "\n\n".join(parts[0]), encoding="utf-8")
    page = "<meta charset=gb2312><title>网页</title>" + "".join(f"<p>{text}</p>" for text in parts[1])
    (tmp_path / "b.html").write_bytes(page.encode("gbk"))
    (tmp_path / "c.pdf").write_bytes(pdf([parts[2]]))
    zipped(tmp_path / "d.docx", docx([("Heading1", "文档"), *(("Normal", text) for text in parts[3])]))
    run(monkeypatch, tmp_path, "--output_dir", tmp_path / "out", "--fraction", 0)
    rows = {Path(row["file"]).name: row for row in rows_in(tmp_path / "out")}
    assert rows["a.md"]["text"] == "# 问答\n\n" + "\n\n".join(parts[0]) and rows["a.md"]["heading"] == "问答"
    assert rows["b.html"]["text"] == "# 网页\n\n" + "\n\n".join(parts[1])
    assert rows["c.pdf"]["text"].split("\n") == parts[2] and rows["c.pdf"]["page"] == 1
    assert rows["d.docx"]["text"] == "# 文档\n\n" + "\n\n".join(parts[3])
    assert not (tmp_path / "out" / "documents_heldout.jsonl").exists()
