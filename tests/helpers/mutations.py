"""Valid rows of all formats, and what tests/fuzz.py makes of them: rows, files and values of YAMLs that are damaged."""

import bz2
import copy
import csv
import gzip
import io
import json
import lzma
import math
import random

import pyarrow
import pyarrow.parquet
import zstandard


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


VALID = [
    {"messages": [user("How many?"), assistant("Seven.")]},
    {"messages": [{"role": "system", "content": "Be brief."}, user("a"), assistant("b"), user("c"), assistant("d")]},
    {"id": "x", "conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好"}]},
    {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]], "system": "Be brief."},
    {"prompt": "Why?", "completion": "Because."},
    {"question": "Who?", "answer": "They."},
    {"text": "Human: a\nAssistant: b"},
    {"text": "Once upon a time there was a king."},
    {"messages": [user([{"type": "text", "text": "parts"}]), assistant("ok")]},
    {"messages": [user("f?"), {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, {"role": "tool", "content": "1"}, assistant("1")]},
    {"prompt": "Which?", "chosen": "this", "rejected": "that", "margin": 1.5},
    {"prompt": [user("Which?")], "chosen": [assistant("this")], "rejected": [assistant("that")]},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"prompt": "p", "completions": ["x", "y", "z"], "ranks": [0, 1, 2], "scores": [3, 2, 1]},
    {"prompt": "p", "answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 2}]},
    {"instruction": "p", "completions": [{"response": "x", "overall_score": 3}, {"response": "y", "overall_score": 1}]},
    {"prompt": "p", "completion": "x", "label": True},
    {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}},
]  # fmt: skip
KEYS = sorted(
    {key for row in VALID for key in row} | {"role", "content", "from", "value", "tools", "images", "Messages", ""}
)
TEXTS = ["", " ", "\n", "a", "\ud800", "\udfff x", "\x00", "\x1b[2J", "\ufeff", "\u2028", "\u200b", "é", "😀", "<|endoftext|>", "<|end|>",
         "Human: a\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "\n\nHuman:", "null", "[1]", "1e999", "x" * 3000, "\ufffd", "Assistant:",
         "user", "gpt", "USER", "tool", "function_call", "[red]", "{{7*7}}", "٣", "true"]  # fmt: skip
NUMBERS = [0, 1, -1, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, True, False, None]


def value(rng: random.Random, depth: int = 0):
    """Any value of JSON."""
    kind = rng.randrange(6 if depth < 4 else 3)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(["a", "b", "some words"])
    if kind == 3:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return copy.deepcopy(rng.choice(VALID))


def places(node, found: list) -> list:
    """Every (container, key) in a value."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        found.append((node, key))
        places(node[key], found)
    return found


def changed(rng: random.Random, row):
    """The row with something in it replaced, removed, renamed, repeated, moved or nested."""
    row = copy.deepcopy(row)
    for _ in range(rng.choice((1, 1, 2, 4))):
        where = places(row, [])
        if not where:
            return row
        node, key = rng.choice(where)
        what = rng.randrange(8)
        if what == 0:
            node[key] = value(rng)
        elif what == 1:
            del node[key]
        elif what == 2 and isinstance(node, dict):
            node[rng.choice(KEYS)] = node.pop(key)
        elif what == 3 and isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[key]))
        elif what == 4 and isinstance(node, list):
            rng.shuffle(node)
        elif what == 5:
            node[key] = [node[key]] if rng.random() < 0.5 else {rng.choice(KEYS): node[key]}
        elif what == 6 and isinstance(node[key], str):
            text, other = node[key], rng.choice(TEXTS)
            at = rng.randrange(len(text) + 1)
            node[key] = text[:at] + other + text[at:]
        elif isinstance(node, dict):
            node[rng.choice(KEYS)] = value(rng)
    return row


def some_rows(rng: random.Random) -> list:
    rows = [copy.deepcopy(rng.choice(VALID)) for _ in range(rng.randrange(1, 6))]
    return [changed(rng, row) if rng.random() < 0.6 else row for row in rows]


def written(rng: random.Random, rows: list, ending: str) -> bytes:
    """Rows as the content of a file of that ending."""
    if ending == ".csv":
        columns = sorted({str(key) for row in rows if isinstance(row, dict) for key in row}) or ["text"]
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            cells = [row.get(key, "") if isinstance(row, dict) else row for key in columns]
            writer.writerow([each if isinstance(each, str) else dumped(each) for each in cells])
        return encoded(file.getvalue())
    if ending == ".parquet":
        rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
        columns = sorted({str(key) for row in rows for key in row}) or ["text"]
        file = io.BytesIO()
        table = {}
        for key in columns:
            cells = [row.get(key) for row in rows]
            try:
                table[key] = pyarrow.array(cells)
            except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
                table[key] = pyarrow.array([None if each is None else dumped(each) for each in cells])
        try:
            pyarrow.parquet.write_table(pyarrow.table(table), file)
        except (pyarrow.ArrowException, UnicodeEncodeError):  # such as a struct without fields
            return b"PAR1"
        return file.getvalue()
    lines = [dumped(row, rng.random() < 0.5) for row in rows]
    if ending == ".txt":
        return encoded(rng.choice(("\n", "\r\n", "\n\n")).join(lines))
    if ending == ".jsonl" and rng.random() < 0.8:
        return encoded(rng.choice(("\n", "\n", "\r\n", "\n\n")).join(lines) + rng.choice(("", "\n")))
    joined = rng.choice((",", ",\n")).join(lines)
    return encoded(rng.choice(("[{}]", "[\n{}\n]\n", '{{"data": [{}]}}')).format(joined))


def dumped(each, ascii_only: bool = True) -> str:
    return json.dumps(each, ensure_ascii=ascii_only)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


COMPRESS = {"": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
OTHERS = [bz2.compress, gzip.compress, lzma.compress, zstandard.compress]
MARKS = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\x00" * 64, b",", b'"', b"[", b"]", b"{", b"}", b"\n", b"\r", b"\\", b"\\u", b"NaN", b"null", b"//", b"\xc3", b"\xed\xa0\x80", b"PAR1"]  # fmt: skip


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The content with bytes changed, inserted, removed or repeated, cut, encoded otherwise, or joined with itself."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(content) + 1)
        what = rng.randrange(9)
        if what == 0:
            content = content[:at]
        elif what == 1:
            content = content[at:]
        elif what == 2 and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        elif what in (3, 4):
            content = content[:at] + rng.choice(MARKS) + content[at:]
        elif what == 5:
            content = content[:at] + content[at + rng.randrange(1, 20) :]
        elif what == 6:
            content = content + content if rng.random() < 0.5 else content[:at] + content
        elif what == 7:
            content = content[:at] + content[at : at + 40] * 2 + content[at:]
        elif rng.random() < 0.3:
            text = content.decode("utf-8", "replace")
            content = text.encode(
                rng.choice(("utf-16", "utf-32", "utf-16-le", "latin-1", "gbk", "utf-8-sig")), "replace"
            )
    return content


def yaml_value(rng: random.Random, before):
    """Another value for a key of a YAML, near the one before or anything."""
    others = [
        None,
        True,
        False,
        0,
        -1,
        1,
        0.5,
        -0.1,
        1e400,
        math.nan,
        "",
        "no",
        "x",
        "1e-4",
        "0",
        [],
        ["x"],
        [1, 2],
        {},
        {"a": 1},
        10**30,
        "é",
    ]
    if isinstance(before, (int, float)) and rng.random() < 0.4:
        return rng.choice([-before, before * 1000, before + 1, str(before), [before], float(before)])
    if isinstance(before, list) and before and rng.random() < 0.4:
        return rng.choice([before[0], before * 2, [before], [None], [*before, 3]])
    return rng.choice(others)
