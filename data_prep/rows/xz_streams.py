"""All streams of an .xz file: Python's own reader ends without an error at bytes that begin no stream after the first."""

import lzma
from typing import BinaryIO

COMPRESSED_AT_ONCE = 1 << 18  # bytes


class XzReader:
    """`read(size)` decompresses `file`, one stream or several, with zeros between them (xz format, section 2.2).

    Raises EOFError where the last stream is not whole, LZMAError for anything else between the streams or behind them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, lzma.LZMADecompressor()

    def read(self, size: int) -> bytes:
        while True:
            held = b""
            if self._decoder.eof:
                held = self._decoder.unused_data.lstrip(b"\0")
                while not held:
                    if not (read := self._file.read(COMPRESSED_AT_ONCE)):
                        return b""
                    held = read.lstrip(b"\0")
                self._decoder = lzma.LZMADecompressor()
            elif self._decoder.needs_input and not (held := self._file.read(COMPRESSED_AT_ONCE)):
                raise EOFError("the last stream does not end")
            if data := self._decoder.decompress(held, size):
                return data
