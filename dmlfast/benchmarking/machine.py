"""What a benchmark's figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from dmlfast import build_information

__all__ = ["describe_machine", "peer_versions"]

# Distributions whose functions are contestants.
_PEERS = ("torch", "pytorch-metric-learning", "faiss-cpu", "scikit-learn", "pykeops")


def describe_machine() -> dict[str, str]:
    """Processor, memory, threads, versions, and the commit when this is a checkout of dmlfast."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{_memory_gib():.0f} GiB",
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "commit": _commit(),
        **build_information(),
    }


def peer_versions() -> dict[str, str]:
    """Version of each distribution that serves as a contestant; "not installed" without it."""
    versions = {}
    for name in _PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _commit() -> str:
    """Of the checkout that this file is tracked in, not of another one around an installation."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
