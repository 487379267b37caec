"""Which prompts was a reward model trained on?"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import read_json
from data_prep.readers.columns import parse_columns
from data_prep.readers.preference_formats import FIELDS
from data_prep.readers.preferences import prompt_key, read_preference
from data_prep.rows.read import data_files, rows_of


def trained_prompts(folder: str) -> tuple[Iterator[str], str | None]:
    """(the keys of the prompts that recipes/reward.py trained a model on, why they are not all known or None).

    `settings.json` in the model's folder names its rankings, which are read if they are still where they were.
    """
    path = Path(folder) / "settings.json"
    if not path.is_file():
        return iter(()), f"there is no {path}"
    try:
        settings = read_json(path)["settings"]
        paths, columns = list(settings["rankings"]), parse_columns(settings.get("columns"), FIELDS)
    except (InputError, KeyError, TypeError):
        return iter(()), f"{path} does not say on what"
    if gone := [each for each in paths if each.startswith("hf://")]:
        return iter(()), f"{gone[0]} is not on this machine"
    try:
        files = data_files(paths)
    except InputError:
        return iter(()), f"{', '.join(paths)} {'is' if len(paths) == 1 else 'are'} no longer there"
    return _keys(files, columns), None


def _keys(files: list[str], columns: dict[str, str] | None) -> Iterator[str]:
    for row in rows_of(files):
        preference, _ = read_preference(row, columns)
        if preference.get("prompt"):
            yield prompt_key(preference["prompt"])
