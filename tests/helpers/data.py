"""Public data that nobody in this project wrote, for tests that run on it; it is not part of the repository.

The folder is the one that GPT_RECIPES_DATA names, else `../shared/data`. In it are the files that the heads of
`recipes/configs` fetch into `data/`, under the names they have there, but of the conversations of Baichuan2 the first
800 alone (`belle_chat_800.json`); from hiyouga/LLaMA-Factory, `data`, also `alpaca_en_demo.json` and `dpo_en_demo.json`.
Where the folder is absent, tests that need it are skipped.
"""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("GPT_RECIPES_DATA") or Path(__file__).parents[3] / "shared" / "data").resolve()
BELLE = DATA / "belle_chat_800.json"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(),
    reason=f"needs public data: {DATA} is no folder; set GPT_RECIPES_DATA to one (see tests/helpers/data.py)",
)


def fetched(path: str) -> Path:
    """The file that stands in for what a head of `recipes/configs` fetches to `path`."""
    return BELLE if path == "data/belle_chat_ramdon_10k.json" else DATA / Path(path).name
