"""Reads and decompresses text files of any size piece by piece: the memory used does not grow with the file."""

import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data_prep.rows.xz_streams import XzReader
from data_prep.rows.zstd_frames import SKIPPABLE, ZstdReader

CHUNK = 1 << 20  # bytes read at once
COMPRESSED = {".gz": ("gzip", b"\x1f\x8b"), ".xz": ("xz", b"\xfd7zXZ\x00"), ".zst": ("Zstandard", b"\x28\xb5\x2f\xfd")}
ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
WIDE = re.compile(rb"\xff\xfe|\xfe\xff|\x00[^\x00]|[^\x00]\x00|\x00\x00\xfe\xff")
BLANKS = re.compile(r"[ \t\r\n]*")


class Window:
    """The part of a text file that is being read: `text` from `position` on, which is on line `line` (from 1).

    Bytes that are not UTF-8 become lone surrogates (PEP 383, surrogateescape), so that nothing is lost.

    Attributes: `failure`, why reading stopped early, or None; `encoding`, the encoding found if it is not UTF-8, or None;
    `byte_order_mark`, whether the file begins with one.
    """

    def __init__(self, path: str | Path) -> None:
        self.text, self.position, self.line = "", 0, 1
        self.failure: str | None = None
        self._before = 0  # characters of the current line before `text`
        self._ended = False
        self._chunks = self._read(Path(path))
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        head = b""
        # A decompressor may return less than it is asked for.
        while len(head) < 6 and (chunk := next(self._chunks, b"")):
            head += chunk
        within = next((name for name, begin in COMPRESSED.values() if head.startswith(begin)), None)
        if within and not self.failure:  # a file that is not compressed has been refused by its name
            around = COMPRESSED[Path(path).suffix.lower()][0]
            self.failure, self._chunks, head = f"{within} data within the {around} data: unpack it once", iter(()), b""
        self.encoding = "UTF-16 or UTF-32" if WIDE.match(head) else None
        self.byte_order_mark = head.startswith(codecs.BOM_UTF8)
        self.text = self._decode(head.removeprefix(codecs.BOM_UTF8))

    def _read(self, path: Path) -> Iterator[bytes]:
        """The bytes of the file, decompressed as its ending says; they end early at a failure."""
        try:
            file = path.open("rb")
        except OSError as error:
            self.failure = f"that it cannot be opened ({error.strerror})"
            return
        with file:
            magic = file.read(6)
            file.seek(0)
            name, start = COMPRESSED.get(path.suffix.lower(), (None, b""))
            actual = next((other for other, begin in COMPRESSED.values() if magic.startswith(begin)), None)
            if actual and actual != name:
                self.failure = f"{actual} data; the name should end in {_ending(actual)}"
                return
            if name == "Zstandard" and magic.startswith(SKIPPABLE):
                pass  # pzstd begins with a frame that holds no data
            elif name and magic and not magic.startswith(start):
                self.failure = f"not {name} data: it begins with the bytes {magic!r}"
                return
            stream = decompressed(file, path.suffix)
            done = 0
            try:
                while chunk := stream.read1(CHUNK) if name == "gzip" else stream.read(CHUNK):
                    done += len(chunk)
                    yield chunk
            except ERRORS as error:
                self.failure = f"{name or 'the file'} breaks off after {done:,} bytes ({error})"

    def more(self) -> bool:
        """Read more, and discard what is before `position`. False at the end of the file.

        Each call reads at least as much as is kept, so that a row that needs many calls is scanned only a few times.
        """
        if self._ended:
            return False
        newline = self.text.rfind("\n", 0, self.position)
        self._before = self._before + self.position if newline < 0 else self.position - newline - 1
        pieces, wanted = [self.text[self.position :]], len(self.text) - self.position
        read = 0
        while read <= wanted and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            pieces.append(self._decode(chunk or b"", self._ended))
            read += len(pieces[-1])
        self.text, self.position = "".join(pieces), 0
        return read > 0

    def skip_blanks(self) -> str:
        """Move to the next character that is not blank, and return it; "" at the end of the file."""
        while True:
            self.move(BLANKS.match(self.text, self.position).end())
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def move(self, position: int) -> None:
        """Move forward to `position` in `text`."""
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def skip_line(self) -> int:
        """Move to the end of the line, however long it is. Returns the number of characters that were passed over."""
        passed = 0
        while (end := self.text.find("\n", self.position)) < 0:
            passed += len(self.text) - self.position
            self.move(len(self.text))
            if not self.more():
                return passed
        passed += end - self.position
        self.move(end)
        return passed

    def skip_all(self) -> int:
        """Move to the end of the file. Returns the number of characters that were passed over."""
        passed = 0
        while True:
            passed += len(self.text) - self.position
            self.move(len(self.text))
            if not self.more():
                return passed

    def place(self, position: int) -> str:
        """ "line 3, column 9" for a position in `text` that is not before the current one."""
        line = self.line + self.text.count("\n", self.position, position)
        newline = self.text.rfind("\n", 0, position)
        return f"line {line:,}, column {position - newline if newline >= 0 else self._before + position + 1:,}"


def _ending(name: str) -> str:
    return next(ending for ending, (other, _) in COMPRESSED.items() if other == name)


def decompressed(file: BinaryIO, suffix: str):
    """A stream of the bytes in `file`, decompressed as the ending of its name says. `read` raises one of `ERRORS` where the
    file breaks off."""
    name, _ = COMPRESSED.get(suffix.lower(), (None, b""))
    if name == "gzip":
        return gzip.GzipFile(fileobj=file)
    if name == "xz":
        return XzReader(file)
    if name == "Zstandard":
        return ZstdReader(file)
    return file
