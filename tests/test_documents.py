"""What reading documents is made of: sections, repeated lines, and the process that files are read in."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents.child import Child
from data_prep.documents.repeated_lines import without_repeated_lines
from data_prep.documents.sections import NotRead, by_heading, rst_headings

EATEN = ("eat", "refused", "needs more than 256 MiB of memory (--memory_limit)")
LINES = [
    "# A",
    "## B",
    "### B #",
    "text",
    "  more text",
    "",
    "---",
    "===",
    "```",
    "~~~~",
    "* item",
    "....",
    "| a |",
    "#no",
]


def told(text: str, headings=None) -> list[tuple[str, str]]:
    sections = by_heading(text, headings) if headings else by_heading(text)
    return [(section.heading, section.text) for section in sections]


def test_headings_in_markdown():
    text = "before\n\n# A #\n\n## B\none\n\n~~~\n## code\n```\n~~~\nC\n===\ntwo\n\nD\n---\nthree\n\n| a |\n---\n# E"
    assert told(text) == [
        ("", "before"),
        ("A > B", "# A #\n\n## B\none\n\n~~~\n## code\n```\n~~~\nC\n===\ntwo"),  # "C" ends a paragraph of two lines
        ("A > D", "D\n---\nthree\n\n| a |\n---"),
        ("E", "# E"),
    ]


def test_code_within_a_line_opens_no_fence():
    text = "# A\n``` one ``` is code\n\n# B\nx\n````py\n# no\n```\n# no\n````\n# C\ny"
    assert told(text) == [
        ("A", "# A\n``` one ``` is code"),
        ("B", "# B\nx\n````py\n# no\n```\n# no\n````"),
        ("C", "# C\ny"),
    ]


def test_headings_in_restructuredtext():
    text = "****\nBook\n****\nby me\n\nOne\n===\na\n\nDeep\n----\nb\n\n  no\n  --\nTwo\n===\nc\n\nLong title\n---\nd"
    assert told(text, rst_headings) == [
        ("Book", "****\nBook\n****\nby me"),
        ("Book > One", "One\n===\na"),
        (
            "Book > One > Deep",
            "Deep\n----\nb\n\n  no\n  --\nTwo\n===\nc\n\nLong title\n---\nd",
        ),  # no blank line before "Two"
    ]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(LINES), max_size=14), st.booleans())
def test_no_line_is_lost_between_sections(lines, rst):
    sections = by_heading("\n".join(lines), rst_headings) if rst else by_heading("\n".join(lines))
    written = [line for section in sections for line in section.text.split("\n") if line.strip()]
    assert written == [line for line in lines if line.strip()]


def test_headers_footers_and_page_numbers_go_and_what_repeats_in_the_text_stays():
    pages = [
        f"Guide\n{'Left' if page % 2 else 'Right'} wing\n\nNote\n{text}\nNote\nend of {text}\n– {page + 7} –\n"
        for page, text in enumerate(["pears", "figs", "nuts", "dates", "limes", "plums"])
    ]
    left, removed, examples = without_repeated_lines(pages)
    # Left and right wing alternate. Below them "Note" is at the edge, and goes; the one within the text stays.
    fruits = ["pears", "figs", "nuts", "dates", "limes", "plums"]
    assert left == [f"{fruit}\nNote\nend of {fruit}" for fruit in fruits]
    assert removed == {"headers": 18, "page numbers": 6}
    assert examples == ["Guide", "Right wing", "Left wing", "Note", "– 7 –"]


@pytest.mark.parametrize(
    ("edges", "goes"),
    [
        (["12", "13", "14"], True),
        (["Page 1 of 9", "Page 2 of 9", "Page 3 of 9"], True),
        (["第 8 页", "第 9 页", "第 10 页"], True),
        (["ix", "x", "xi"], True),
        (["3-4", "3-5", "3-6"], True),
        (["4", "9", "2"], False),
        (["1999", "2000"], False),
        (["Ann", "Bob", "Cid"], False),
        (["A", "b", "b", "c", "d", "e", "b"], False),  # thrice, but not near each other
    ],
)
def test_which_lines_are_headers(edges, goes):
    pages = [f"{edge}\ntext {chr(97 + number)}" for number, edge in enumerate(edges)]
    left, removed, _ = without_repeated_lines(pages)
    assert left == ([page.split("\n")[1] for page in pages] if goes else pages)
    assert sum(removed.values()) == (len(pages) if goes else 0)


def act(what: str):
    """What a library could do that reads a file."""
    if what == "hang":
        time.sleep(600)
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "eat":
        bytearray(1 << 34)
    elif what == "nest":
        act(what)
    elif what == "call":
        socket.create_connection(("127.0.0.1", 9))
    elif what == "run":
        subprocess.run(["true"])
    elif what == "refuse":
        raise NotRead("refused", "its own reason")
    return what


def test_a_file_that_hangs_crashes_or_asks_for_more_is_named_and_the_next_is_read():
    with Child(act, seconds=1, megabytes=256) as child:
        for what, kind, reason in [
            *([EATEN] if sys.platform == "linux" else []),  # other systems do not limit a process's memory
            ("nest", "refused", "nested too deeply"),
            ("call", "unreadable", "PermissionError: a document asked for socket.getaddrinfo"),
            ("run", "unreadable", "PermissionError: a document asked for subprocess.Popen"),
            ("refuse", "refused", "its own reason"),
            ("crash", "unreadable", "the library that reads it crashed (exit code -11)"),
            ("hang", "refused", "not read within 1 seconds (--time_limit)"),
        ]:
            with pytest.raises(NotRead) as error:
                child(what)
            assert (error.value.kind, error.value.reason) == (kind, reason)
        assert child("read") == "read"
        process = child.process
    assert process.exitcode == -signal.SIGKILL  # nothing is left running
