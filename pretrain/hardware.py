"""What the machine under a run can do: measured, not looked up."""

from __future__ import annotations

import resource
import sys
import time

import torch


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest square matrix product of `dtype` on `device`, measured for about `seconds`.

    The denominator of model FLOPs utilisation: what this device reaches here and now, with this process's threads.
    """
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024, 2048)
    return max(_matmul_rate(size, device, dtype, seconds / len(sizes)) for size in sizes)


def _matmul_rate(size: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    a, b = (torch.randn(size, size, dtype=torch.float32).to(device, dtype) for _ in range(2))
    out = a @ b
    _synchronize(device)
    products, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or not products:
        torch.matmul(a, b, out=out)
        _synchronize(device)
        products += 1
    elapsed = time.perf_counter() - started
    return 2 * size**3 * products / elapsed


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this process has held so far: of the GPU's where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
