"""What evaluations leave, and the pictures that a report draws of it."""

from pathlib import Path


def interval(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high, "n": 9}


def assert_small_picture(path: Path) -> None:
    """A PNG 1,000 pixels wide, below 150 KB."""
    picture = path.read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) < 150_000
    assert int.from_bytes(picture[16:20]) == 1000
