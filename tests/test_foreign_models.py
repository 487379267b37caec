"""A checkpoint from elsewhere: what cannot be used is refused in one line, and nothing that lies in its folder is run."""

import os

import pytest

from data_prep.common.files import readable


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_can_be_read_by_whom_their_neighbours_can(tmp_path, tiny_model_dir, umask, mode):
    folder = tmp_path / "value_model"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes((tiny_model_dir / "model.safetensors").read_bytes())
    weights.chmod(0o600)  # as safetensors leaves it
    before = os.umask(umask)
    try:
        readable(tmp_path)
    finally:
        os.umask(before)
    assert weights.stat().st_mode & 0o777 == mode
