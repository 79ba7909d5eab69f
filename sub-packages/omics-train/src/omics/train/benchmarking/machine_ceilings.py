"""What a machine can do at most: matrix products by type, and copying of memory.

- On random numbers: products of zeros take less power, and are faster than any real one.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from omics.train.benchmarking.interleaved_rounds import interleaved

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 1 << 27, "cuda": 1 << 31}


def product_tflops(
    kind: torch.dtype, *, device: str, size: int | None = None, rounds: int = 3
) -> float:
    """Return the best rate of a square matrix product, in 10^12 operations a second.

    Args:
        kind: of the numbers.
        device: `cpu` or `cuda`.
        size: of the matrices; None for one that fills the device.
        rounds: of which the fastest counts.
    """
    n = size or PRODUCT_SIZE[device]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=generator).to(kind) for _ in range(2))
    seconds = interleaved({"product": lambda: a @ b}, rounds=rounds, device=device)["product"]
    return 2 * n**3 / min(seconds) / 1e12


def copy_gigabytes(*, device: str, size: int | None = None, rounds: int = 3) -> float:
    """Return the best rate of copying memory, in 10^9 bytes read and written a second.

    Args:
        device: `cpu` or `cuda`.
        size: bytes; None for more than any cache holds.
        rounds: of which the fastest counts.
    """
    source = torch.ones(size or COPIED_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, rounds=rounds, device=device)
    return 2 * source.numel() / min(seconds["copy"]) / 1e9


def has_fast_bfloat16(device: str) -> bool:
    """Return whether products in bfloat16 are done by the hardware.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "avx512_bf16" in flags.read_text(encoding="utf-8")


def device_name(device: str) -> str:
    """Return the name of a GPU or CPU.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"
