"""Plain text whose documents end at lines of <|endoftext|> alone, as those of TinyStories."""

from collections import Counter

import pytest

from data_prep import check, clean_corpus
from data_prep.common.files import read_json, read_jsonl
from data_prep.readers.documents import read_documents
from data_prep.rows.read import read_rows

STORIES = {
    "each line": ("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n", ["One.", "Two."], [1, 3], 2),
    "blank lines around": (
        "\nOne.\n\nIt rained.\n\n<|endoftext|>\n\nTwo.\n<|endoftext|>\n\n",
        ["One.\n\nIt rained.", "Two."],
        [1, 7],
        2,
    ),
    "none at the end": ("One.\r\n<|endoftext|> \r\nTwo.\r\nMore.", ["One.", "Two.\nMore."], [1, 3], 1),
    "nothing between": ("<|endoftext|>\n<|endoftext|>\nOne.\n<|endoftext|>", ["One."], [3], 1),
    "long lines": (f"{'a' * 900}\n{'b' * 900}\n<|endoftext|>\nc", [f"{'a' * 900}\n{'b' * 900}", "c"], [1, 4], 1),
    "in a line": ("One <|endoftext|>\n <|endoftext|>\n", ["One <|endoftext|>\n <|endoftext|>\n"], [1], 0),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_line_of_the_end_of_text_ends_a_document(command, tmp_path, name):
    content, texts, lines, separated = STORIES[name]
    path = tmp_path / "stories.txt"
    path.write_bytes(content.encode())
    counts: Counter = Counter()
    rows = list(read_rows(path, counts))
    assert [(row.value, row.line, row.number) for row in rows] == [
        (text, line, number) for number, (text, line) in enumerate(zip(texts, lines, strict=True), start=1)
    ]
    assert counts["separated"] == separated and list(read_documents(path)) == texts
    code, out, _ = command(check, path, "--output", tmp_path / "out")
    assert code == 0 and [row["text"] for row in read_jsonl(tmp_path / "out" / "documents.jsonl")] == texts
    noun = "document" if separated == 1 else "documents"
    said = f"a line of <|endoftext|> alone ends a document: {separated} {noun}\n"
    assert out.count(said) == bool(separated)
    assert read_json(tmp_path / "out" / "report" / "check.json")["documents"].get("separated", 0) == separated
    given = ["--corpus", path, "--quality", "none", "--output_dir", tmp_path / "clean"]
    code, out, _ = command(clean_corpus, *given)
    assert code == 0 and out.count(said) == bool(separated)


def test_documents_of_many_megabytes_with_a_line_between_them(tmp_path):
    """A long one is cut after 131,072 characters, at the end of a line, as any running text is."""
    line = "and then it rained for a day and a night\n"
    texts = [line * (1 + number % 7) for number in range(20_000)]
    texts[5000] = line * 5000
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>\n".join(texts))
    rows = list(read_rows(path))
    cut = -(-(131_072 + 1) // len(line))  # lines: the first line break that comes after as many characters
    pieces = [row.value for row in rows[5000 : 5000 + -(-5000 // cut)]]
    assert [piece.count("\n") + 1 for piece in pieces] == [cut, 5000 - cut]
    assert len(rows) == len(texts) + 1
    whole = [*(row.value for row in rows[:5000]), "\n".join(pieces), *(row.value for row in rows[5002:])]
    assert whole == [text.removesuffix("\n") for text in texts]
    last = rows[-1]
    assert last.line == 1 + sum(map(len, texts[:-1])) // len(line) + len(texts) - 1
