"""Resident memory of this process and of another, and the peak that a call reaches. Linux only."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["available_gib", "give_back", "peak_memory", "resident"]

_CLEAR = Path("/proc/self/clear_refs")


def _kibibytes(path: str, name: str) -> int:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"{path} has no line {name}")


def peak_memory(call: Callable[[], object]) -> float | None:
    """MiB of resident memory that a call needs above what was resident; None without /proc."""
    if not _CLEAR.exists():
        return None
    give_back()
    # 5 resets the high-water mark.
    _CLEAR.write_text("5", encoding="ascii")
    before = _kibibytes("/proc/self/status", "VmRSS:")
    call()
    return (_kibibytes("/proc/self/status", "VmHWM:") - before) / 1024


def resident(process: int) -> float | None:
    """MiB of resident memory of a process; None when it has ended or without /proc."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def available_gib() -> float | None:
    """GiB that can be used before the system swaps or kills; None without /proc."""
    try:
        return _kibibytes("/proc/meminfo", "MemAvailable:") / 2**20
    except OSError:
        return None


def give_back() -> None:
    """Give freed memory back, so that a call cannot hide its need in what another left behind."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is not None:
        trim(0)
