"""Whether bf16 is trained in: by what the processor is, never by a measurement."""

import pytest
import torch

from data_prep.common.machine import bf16_is_fast


@pytest.mark.parametrize(
    ("name", "avx512_bf16", "amx", "fast"),
    [
        ("AMD EPYC", True, False, True),
        ("AMD EPYC", False, False, False),
        ("Intel Xeon", True, False, False),  # half of fp32's speed
        ("Intel Xeon", True, True, True),
        ("", False, False, False),
    ],
)
def test_bf16_on_a_processor(monkeypatch, name, avx512_bf16, amx, fast):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    assert bf16_is_fast() is fast


def test_this_processor_is_asked_for_names_that_torch_has():
    assert isinstance(torch.cpu.get_capabilities()["cpu_name"], str) and bf16_is_fast() in (True, False)
