"""The choice between compiled kernels and the plain-torch reference."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from contextlib import ContextDecorator

import torch

from dmlfast import _library

BACKENDS = ("kernel", "reference")


def _check(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {BACKENDS}, got {name!r}")
    return name


class _State(threading.local):
    """The backend of this thread."""

    def __init__(self) -> None:
        self.name = os.environ.get("DMLFAST_BACKEND") or "kernel"
        # Here, not in use_backend: one decorator serves the calls of many threads.
        self.previous: list[str] = []


_state = _State()


def backend_name() -> str:
    """The backend of this thread.

    Raises:
        ValueError: `DMLFAST_BACKEND` names another.
    """
    # Here, not at import: the command line can then say it in a sentence.
    return _check(_state.name, "DMLFAST_BACKEND")


class use_backend(ContextDecorator):
    """Chooses who computes, in a `with` block or for a decorated function, in this thread.

    `"kernel"` (the default, or what the environment variable `DMLFAST_BACKEND` says) uses the
    compiled kernels, and the reference for a device that has none, with one warning.
    `"reference"` uses plain torch everywhere.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str) -> None:
        self.name = _check(name, "use_backend")

    def __enter__(self) -> use_backend:
        _state.previous.append(_state.name)
        _state.name = self.name
        return self

    def __exit__(self, *_: object) -> None:
        _state.name = _state.previous.pop()


# Devices on which a family has kernels, or an operator that has others than its family. Fakes stand
# for them on "meta".
_KERNELS = {
    "clusters": ("cpu", "cuda", "meta"),
    "neighbors": ("cpu", "cuda", "meta"),
    "neighbors_sample": ("cpu", "cuda", "meta"),
    "neighbors_top": ("cpu", "cuda", "meta"),
    "contrast_sums": ("cpu", "cuda", "meta"),
    "contrast_triplet": ("cpu", "cuda", "meta"),
    "pairwise": ("cpu", "cuda", "meta"),
    "ranking": ("cpu", "cuda", "meta"),
    "structure": ("cpu", "cuda", "meta"),
}

_warned: set[tuple[str, str]] = set()


@functools.cache
def _check_cpu_isa() -> None:
    """Raises ValueError when `DMLFAST_CPU_ISA` is wrong: here, as Python still has its type."""
    if _library.module is not None:
        _library.module.cpu_isa()


def uses_kernel(name: str, device: torch.device) -> bool:
    """Whether a family, or an operator with a line of its own, has kernels on this device.

    Raises:
        RuntimeError: the kernels are wanted, but the compiled library is not there.
        ValueError: `DMLFAST_BACKEND` or `DMLFAST_CPU_ISA` names what is not there.
    """
    if backend_name() == "reference":
        return False
    if not _library.cpu_status.loaded:
        raise RuntimeError(
            f"dmlfast: {_library.cpu_status.reason}. Plain torch serves meanwhile with "
            "DMLFAST_BACKEND=reference"
        )
    if device.type == "cpu" and not torch.compiler.is_compiling():
        _check_cpu_isa()
    exists = device.type in _KERNELS[name]
    if exists and (device.type != "cuda" or _library.cuda_status.loaded):
        return True
    # A compiled function warns nobody: the warning would break its graph.
    if (name, device.type) not in _warned and not torch.compiler.is_compiling():
        _warned.add((name, device.type))
        reason = _library.cuda_status.reason if exists else "it has no kernels there"
        warnings.warn(
            f"dmlfast: plain torch serves {name!r} on {device.type}, more slowly "
            f"than kernels would: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )
    return False
