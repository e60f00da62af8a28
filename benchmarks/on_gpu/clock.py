"""Seconds, memory and rates of a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Step

__all__ = ["Clock", "ceilings", "extra_memory", "synchronize"]

# Seconds that a turn of steps back to back takes, at least, so that the first launch hardly counts.
_TURN = 5e-3
_MOST = 50


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Clock:
    """Seconds of a step: between CUDA events, over as many steps back to back as fill 5 ms.

    On a CPU, of one step by the clock of the host. The first call for a step only finds how many
    steps there will be from then on.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._steps: dict[int, int] = {}

    def __call__(self, step: Step) -> float:
        count = self._steps.get(id(step), 1)
        seconds = self._measure(step, count) / count
        if id(step) not in self._steps:
            wanted = math.ceil(_TURN / max(seconds, 1e-7))
            self._steps[id(step)] = min(_MOST, wanted) if self._device == "cuda" else 1
        return seconds

    def _measure(self, step: Step, count: int) -> float:
        if self._device != "cuda":
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            step()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1e3


def extra_memory(device: str, before: int, step: Step) -> int | None:
    """Bytes of the device that are allocated at most in a step, above `before`; None on a CPU."""
    if device != "cuda":
        step()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def ceilings(device: str, quick: bool) -> dict[str, object]:
    """What the device reaches: copying (bytes read and written), and multiplying matrices.

    On random data: on zeros it can be faster.
    """
    clock = Clock(device)
    size, elements = (256, 2**16) if quick else (8192, 2**30)
    moved = _copied(clock, torch.randn(elements, device=device))
    rates = {}
    for name in ("bfloat16", "float16", "tf32", "float32"):
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = multiplication(a, b, torch.empty_like(a), tf32=name == "tf32")
        rates[name] = 2 * size**3 / _median(clock, product)
    return {"bytes_per_second": moved, "operations_per_second": rates, "size": size}


def _copied(clock: Clock, source: Tensor) -> float:
    """Bytes per second, read and written, of copying a tensor to another place."""
    target = torch.empty_like(source)
    copying = _median(clock, lambda: target.copy_(source))
    return 2 * source.element_size() * source.numel() / copying


def multiplication(a: Tensor, b: Tensor, out: Tensor, *, tf32: bool = False) -> Step:
    """A step that multiplies matrices; in float32 with the matrix units' tf32, or without."""

    def step() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            return torch.mm(a, b, out=out)
        finally:
            torch.set_float32_matmul_precision(before)

    return step


def _median(clock: Callable[[Step], float], step: Step, rounds: int = 9) -> float:
    for _ in range(3):
        clock(step)
    return sorted(clock(step) for _ in range(rounds))[rounds // 2]
