"""How a card names files: by as much of their paths as tells them apart, and nothing of the machine that they lie on."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ADDRESS = re.compile(r"(?!file:)\w+://")  # of the Hub or the web: of no machine of the user's
HOME = re.compile(r"(?:\w:)?[/\\]+(?:root|(?:home|[Uu]sers)[/\\]+[^/\\]+)(?=[/\\]|$)")
UNTOLD = re.compile(r"\.{0,2}|~\w*|\w:")  # parts of a path that say where on a machine it begins


def is_path(value) -> bool:
    """Whether a setting or a value of a row is text that names a file or folder with where it lies."""
    return isinstance(value, str) and not ADDRESS.match(value) and bool(re.search(r"[/\\]", value))


def paths_in(value, every: bool = False) -> Iterator[str]:
    """All paths in a value of JSON; `every` text is one, also that without a folder, but for addresses."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from paths_in(each, every)
    elif is_path(value) or (every and isinstance(value, str) and not ADDRESS.match(value)):
        yield value


def parts_told(path: str) -> tuple[str, ...]:
    """The parts of a path that may be told: those below a home directory, without what leads to them."""
    path = path.removeprefix("file://")
    whole = os.path.normpath(path)
    if whole.startswith(".."):
        whole = os.path.abspath(whole)
    home = str(Path.home()).rstrip("/")
    if home and f"{whole}/".startswith(f"{home}/"):
        whole = whole[len(home) :]
    if begin := HOME.match(whole):
        whole = whole[begin.end() :]
    return tuple(part for part in re.split(r"[/\\]+", whole) if not UNTOLD.fullmatch(part))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """{path: name} by the shortest end of each path that no other has.

    Paths of one file, relative and absolute, have one name. Where nothing tells two files apart but the parts that are
    not told (see `parts_told`), they are numbered: "talk.json", "talk.json (2)".
    """
    told: dict[str, tuple[str, ...]] = {}
    place_of = {path: os.path.abspath(os.path.expanduser(path.removeprefix("file://"))) for path in paths}
    for path, place in place_of.items():
        parts = parts_told(path)
        if place not in told or len(parts) < len(told[place]):
            told[place] = parts
    ends = Counter(parts[start:] for parts in told.values() for start in range(len(parts)))
    names: dict[str, str] = {}
    taken: Counter = Counter()
    for place, parts in told.items():
        shortest = next((start for start in reversed(range(len(parts))) if ends[parts[start:]] == 1), 0)
        name = "/".join(parts[shortest:]) or "…"
        taken[name] += 1
        names[place] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return {path: names[place] for path, place in place_of.items()}


def shown(value, names: dict[str, str]):
    """A value of JSON with its paths by their `names`; a path without one by its last part."""
    if isinstance(value, list):
        return [shown(each, names) for each in value]
    if isinstance(value, dict):
        return {key: shown(each, names) for key, each in value.items()}
    if isinstance(value, str) and value in names:
        return names[value]
    return short_names([value])[value] if is_path(value) else value


def names_of(paths: str | list[str] | None, names: dict[str, str]) -> str:
    """Files as a card names them, one after the other."""
    return ", ".join(str(shown(path, names)) for path in ([paths] if isinstance(paths, str) else paths or []))
