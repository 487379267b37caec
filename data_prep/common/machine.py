"""What this machine can do: whether bf16 is fast, and how fast matrix products are."""

import ctypes
import os
import re
import sys
import time
from pathlib import Path

import psutil
import torch


def bf16_is_fast(device: str | None = None) -> bool:
    """Whether bf16 is faster than fp32: on a GPU that supports it, a CPU with AMX, or AMD's with AVX-512 BF16.

    `device` is the type of one; default: what training uses, a GPU if there is one.

    Intel's AVX-512 BF16 without AMX takes about twice as long as fp32: 86 against 153 GFLOP/s in products of 2,048 × 192 by
    192 × 768 on one core of a Xeon whose virtual machine hides AMX. Without either, PyTorch emulates bf16: 0.9 GFLOP/s,
    against 141 in fp32, on a 2-core AMD EPYC with AVX2. By what the processor says of itself, not by a stopwatch: a
    resumed run must find the same.
    """
    device = device or training_device().type
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "intel" not in torch.cpu.get_capabilities()["cpu_name"].lower()


def training_device() -> torch.device:
    """The GPU, or what else accelerates, if there is one; else the processor."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def without_cudnn_attention() -> None:
    """Keep torch from cuDNN's attention on a GPU: torch's own kernels do it.

    From H100 on torch prefers cuDNN's, which plans each new shape for a good part of a second: with padded batches nearly
    every step, in sampling every token. With a mask its gradients can be NaN (pytorch#196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, on Linux with glibc: giving it back to the system and getting it anew,
    page by page, takes up to a fifth of a training step on a processor. What the environment says (MALLOC_…) stays as it is.

    See mallopt(3); the values are those of recipes/steps.sh, the second one as large as mallopt takes it.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)


def matrix_size(device: torch.device) -> int:
    """Rows and columns of the matrices of `matrix_rate`: what keeps a GPU busy, and a processor for a moment only."""
    return 1024 if device.type == "cpu" else 8192


def matrix_rate(dtype: torch.dtype = torch.float32, seconds: float = 0.5, device: torch.device | None = None) -> float:
    """FLOP/s of products of square matrices on `device` (default: what training uses), the best within `seconds`."""
    device = device or training_device()
    size = matrix_size(device)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b  # the first brings its library
    if device.type != "cpu":
        torch.accelerator.synchronize()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type != "cpu":
            torch.accelerator.synchronize()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def matrix_rates() -> dict[str, float]:
    """GFLOP/s of `matrix_rate` by precision, printed too: fp32 and, if it is fast here, bf16."""
    kinds = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if bf16_is_fast() else {})
    rates = {name: matrix_rate(dtype) / 1e9 for name, dtype in kinds.items()}
    device = training_device()
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else f"on {device.type}"
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} GFLOP/s in a {matrix_size(device)}³ matrix product, {where}")
    return rates


def seconds_of_others() -> float:
    """Processor seconds, since the machine was started, of all but this process and its children that have ended.

    What it grows by while a benchmark's processes run is what others took from them.
    """
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    # Guests are counted in user time too; waiting for a disk keeps no core busy.
    free = sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
    return sum(times) - free - sum(own[:4])


def peak_memory() -> int:
    """Bytes of memory that this process has held at most.

    Linux's getrusage gives those of the process that started it, where they were more: of a measurement, the measuring
    process's.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), flags=re.M)):
        return int(found[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
