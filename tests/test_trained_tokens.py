"""How many tokens were trained on after some updates: the last update of a pass may be a short one."""

from types import SimpleNamespace

import pytest

from recipes.trainers.batch import tokens_after


def given(**changed):
    about = {"train_batch_size": 4, "world_size": 1, "gradient_accumulation_steps": 2, "dataloader_drop_last": False}
    return SimpleNamespace(**{**about, **changed})


@pytest.mark.parametrize(
    ("updates", "rows"), [(0, 0), (1, 8), (2, 16), (3, 19), (4, 27), (6, 38), (7, 46)]
)  # 19 rows: 8, 8, 3
def test_a_pass_ends_with_what_is_left(updates, rows):
    assert tokens_after(given(), 19, 10)(updates) == rows * 10


def test_rows_that_are_left_out_are_not_counted():
    """19 rows in batches of 4: the last three are left out, so that a pass is two updates of 8."""
    tokens = tokens_after(given(dataloader_drop_last=True), 19, 10)
    assert [tokens(updates) for updates in (1, 2, 3)] == [80, 160, 240]


def test_processes_share_an_update():
    tokens = tokens_after(given(world_size=2), 40, 1)
    assert [tokens(updates) for updates in (1, 2, 3, 4)] == [16, 32, 40, 56]
