"""GPUs that a plan can be made for: what their makers' data sheets say."""

from typing import NamedTuple


class GPU(NamedTuple):
    """One GPU.

    flops: dense bf16 FLOP/s with fp32 sums, without "sparsity", which doubles it on paper; fp16 where there is no bf16.
    memory: bytes. bandwidth: bytes/s of it.
    """

    flops: float
    memory: float
    bandwidth: float


# H100, H200 and A100 are the SXM modules: an H100 on a PCIe card has 756 TFLOP/s and 2.0 TB/s. A data sheet whose figure is
# "with sparsity" gives twice what is here. GeForce cards do half their advertised fp16 rate when sums are fp32, as here.
# The rates are also those of the units × FLOPs a clock × boost clock (tests/test_plan.py works them out).
GPUS = {
    "v100": GPU(125e12, 32e9, 0.90e12),  # NVIDIA V100 data sheet, SXM2: 125 TFLOPS of fp16; there is no bf16
    "v100-16gb": GPU(125e12, 16e9, 0.90e12),  # the same
    "t4": GPU(65e12, 16e9, 0.32e12),  # NVIDIA T4 data sheet: 65 TFLOPS of fp16; there is no bf16
    "a10": GPU(125e12, 24e9, 0.60e12),  # NVIDIA A10 data sheet: 125, 250 with sparsity; the A10G of a cloud has less
    "a100-40gb": GPU(312e12, 40e9, 1.555e12),  # NVIDIA A100 data sheet: 312, 624 with sparsity
    "a100": GPU(312e12, 80e9, 2.039e12),  # the same
    "rtx3090": GPU(71e12, 24e9, 0.936e12),  # NVIDIA GA102 whitepaper: bf16 with fp32 accumulate 71, 142 with sparsity
    "l4": GPU(121e12, 24e9, 0.30e12),  # NVIDIA L4 data sheet: 242 with sparsity
    "l40s": GPU(362e12, 48e9, 0.864e12),  # NVIDIA L40S data sheet: 362.05, 733 with sparsity
    "rtx4090": GPU(
        165e12, 24e9, 1.008e12
    ),  # NVIDIA Ada whitepaper: bf16 with fp32 accumulate 165.2, 330.4 with sparsity
    "h100": GPU(989e12, 80e9, 3.35e12),  # NVIDIA H100 data sheet, SXM: 1,979 with sparsity
    "h200": GPU(989e12, 141e9, 4.8e12),  # NVIDIA H200 data sheet, SXM: 1,979 with sparsity
    "b200": GPU(2250e12, 180e9, 7.7e12),  # NVIDIA Blackwell data sheet, HGX B200: 4,500 with sparsity
    "rtx5090": GPU(
        209.5e12, 32e9, 1.792e12
    ),  # NVIDIA RTX Blackwell whitepaper: 209.5 with fp32 accumulate, 419 sparse
    "mi300x": GPU(1307e12, 192e9, 5.3e12),  # AMD MI300X data sheet: 1,307.4, 2,614.9 with sparsity
}
USABLE = 0.9  # of the memory: the driver, the kernels' workspaces and gaps between blocks take the rest
