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


# NVIDIA: data sheets of V100, T4, A100, L4, L40S, H100 (SXM), H200 and B200; the Ada whitepaper for the RTX 4090.
# AMD: data sheet of the MI300X.
GPUS = {
    "v100": GPU(125e12, 32e9, 0.90e12),
    "t4": GPU(65e12, 16e9, 0.32e12),
    "a100-40gb": GPU(312e12, 40e9, 1.555e12),
    "a100": GPU(312e12, 80e9, 2.039e12),
    "l4": GPU(121e12, 24e9, 0.30e12),
    "l40s": GPU(362e12, 48e9, 0.864e12),
    "rtx4090": GPU(165e12, 24e9, 1.008e12),
    "h100": GPU(989e12, 80e9, 3.35e12),
    "h200": GPU(989e12, 141e9, 4.8e12),
    "b200": GPU(2250e12, 180e9, 7.7e12),
    "mi300x": GPU(1307e12, 192e9, 5.3e12),
}
USABLE = 0.9  # of the memory: the driver, the kernels' workspaces and gaps between blocks take the rest
