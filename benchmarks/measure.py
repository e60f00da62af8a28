"""Peak memory of a call."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def _status(name: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"{STATUS} has no line {name}")


def peak_memory(call: Callable[[], object]) -> float | None:
    """MiB of resident memory that a call needs above what was resident; None without /proc."""
    if not CLEAR.exists():
        return None
    gc.collect()
    # 5 resets the high-water mark.
    CLEAR.write_text("5", encoding="ascii")
    before = _status("VmRSS:")
    call()
    return (_status("VmHWM:") - before) / 1024
