"""Whether bf16 is trained in: by what the processor is, never by a measurement. And memory that a process keeps."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from data_prep.common.machine import bf16_is_fast, keep_freed_memory


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


FAULTS = """
import resource
import sys
import torch
from data_prep.common.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fill():
    torch.ones(2**23)  # 32 MB, 8,192 pages, freed at once
for _ in range(10):  # the first ones grow the heap
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_used_again_unless_the_environment_has_settings_of_its_own():
    def faults(what: str, **more: str) -> int:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        command = [sys.executable, "-c", FAULTS, what]
        return int(subprocess.run(command, env=clean | more, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 100
    # 128 kB is where glibc goes to the system for each piece; a threshold that is set stays.
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="131072") > 100


def test_memory_is_left_alone_on_other_systems(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("Windows has no library of this process: a TypeError"))
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "win32")
    keep_freed_memory()
