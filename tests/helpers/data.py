"""Public data that nobody in this project wrote, for tests that run on it; it is not part of the repository.

The folder is the one that GPT_RECIPES_DATA names, else `../shared/data`. Where it is absent such tests are skipped.
"""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("GPT_RECIPES_DATA") or Path(__file__).parents[3] / "shared" / "data").resolve()
BELLE = DATA / "belle_chat_800.json"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"needs public data: GPT_RECIPES_DATA names no folder, {DATA}"
)
