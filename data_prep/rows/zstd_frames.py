"""Whether a Zstandard file ends with a whole frame: the decoder returns what it has when one breaks off, without an error."""

from collections.abc import Generator
from typing import BinaryIO

import zstandard

FRAME = b"\x28\xb5\x2f\xfd"  # the bytes that a frame begins with (RFC 8878, section 3.1)
SKIPPABLE = tuple(
    bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)
)  # a frame without data, section 3.1.2
ONE_BYTE = 1  # the type of a block that stores one byte, to be repeated


class ZstdReader:
    """`read(size)` decompresses `file`, one frame or several. Raises EOFError where the last frame is not whole.

    The compressed bytes pass through a walk over the frames: it reads the headers of frames and blocks, and steps over
    all else by the sizes that they give.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._walk = self._frames()
        self._asked = next(self._walk)  # bytes that the walk wants to see, or, below 0, to step over
        self._seen = b""
        self._inside = False  # of a frame
        self._stream = zstandard.ZstdDecompressor().stream_reader(_Source(self._compressed), read_across_frames=True)

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if not data and size and (self._inside or self._seen):
            raise EOFError("a frame does not end")
        return data

    def _compressed(self, size: int) -> bytes:
        data = self._file.read(size)
        start = 0
        while start < len(data):
            step = min(abs(self._asked) - len(self._seen), len(data) - start)
            if self._asked < 0:
                self._asked += step
            else:
                self._seen += data[start : start + step]
            start += step
            while self._asked == len(self._seen):
                seen, self._seen = self._seen, b""
                self._asked = self._walk.send(seen)
        return data

    def _frames(self) -> Generator[int, bytes, None]:
        while True:
            self._inside = False
            magic = yield 4
            self._inside = True
            if magic in SKIPPABLE:
                yield -int.from_bytes((yield 4), "little")
                continue
            while magic != FRAME:
                yield 4  # no frame: the decoder says so
            flags = (yield 1)[0]
            own_size, single_segment, checksum, dictionary = flags >> 6, flags >> 5 & 1, flags >> 2 & 1, flags & 3
            yield -((0, 1, 2, 4)[dictionary] + (single_segment, 2, 4, 8)[own_size] + (not single_segment))
            last = False
            while not last:
                block = int.from_bytes((yield 3), "little")
                last = bool(block & 1)
                yield -(1 if block >> 1 & 3 == ONE_BYTE else block >> 3)
            yield -4 * checksum


class _Source:
    def __init__(self, read) -> None:
        self.read = read
