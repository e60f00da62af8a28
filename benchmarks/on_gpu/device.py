"""What the figures are measured on, as JSON: `python -m on_gpu.device [--library | --levels]`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["describe", "missing"]

_PEERS = ("triton", "numpy", "pytest", "pytorch-metric-learning", "pykeops", "flash-kmeans")


def missing() -> str:
    """Why there is no device to measure on; empty where there is one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return ""


def describe() -> dict[str, object]:
    """Device, driver, toolkit, versions, processor."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": _said(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version"),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "peers": {name: _version(name) for name in _PEERS},
    }


def _said(*command: str) -> str:
    """The last line that a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = done.stdout.strip().splitlines()
    return lines[-1].strip() if lines else "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    answer: dict[str, object]
    if "--library" in sys.argv or "--levels" in sys.argv:
        from dmlfast import _library

        usable = [] if _library.module is None else _library.module.usable_cpu_isas()
        answer = dict(_library.build_information())
        if "--levels" in sys.argv:
            answer = {"levels": usable}
    elif reason := missing():
        answer = {"reason": reason}
    else:
        answer = describe()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
