"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmlfast import _library
from dmlfast.data import glyphs
from dmlfast.data.rendering import Glyphs


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Tests interrupt runs; a shell's background job would ignore the signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_draws_every_time() -> None:
    """A test draws the same numbers from torch's global generator, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def select_isa() -> Iterator[Callable[[str], None]]:
    """A function that selects a CPU instruction set; the one in use before comes back."""
    before = _library.module.cpu_isa()
    yield _library.module.select_cpu_isa
    _library.module.select_cpu_isa(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """A function that sets torch's number of threads; the one before comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs code in a fresh interpreter, with additions to its environment."""

    # Not in the checkout, whose source folder would hide the installed package.
    def run(code: str, folder: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DMLFAST_")}
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**inherited, **environment},
            timeout=120,
        )

    return run


@pytest.fixture
def resident_growth(run_python: Callable) -> Callable[[str, str], int]:
    """A function that measures bytes: how far resident memory peaks in `code` above `inputs`.

    In a fresh process, and from its own high-water mark: the one that getrusage reports starts
    at that of the process which started it, and so could hide everything.
    """

    def measure(inputs: str, code: str) -> int:
        program = f"""
import torch
import dmlfast.functional as F

def kibibytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

torch.set_num_threads(2)
x, labels = torch.randn(64, 8, requires_grad=True), torch.arange(64) % 4
F.triplet_margin_loss(x, labels, positives="nearest", negatives="semihard").backward()
F.triplet_margin_loss(x, labels).backward()
{inputs}
before = kibibytes("VmRSS:")
{code}
print(1024 * (kibibytes("VmHWM:") - before))
"""
        done = run_python(program)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return measure


class _Record(TorchDispatchMode):
    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.calls: list[tuple[torch._ops.OpOverload, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == self.namespace:
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def operator_calls() -> Callable[..., list[tuple]]:
    """A function that lists the (operator, arguments) of dmlfast's calls made by a function."""

    def record(f: Callable[[], None], namespace: str = "dmlfast") -> list[tuple]:
        with _Record(namespace) as mode:
            f()
        return mode.calls

    return record


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the rendered glyphs; tests only read it."""
    folder = tmp_path_factory.mktemp("cache")
    glyphs.bitmaps(folder)
    return folder


@pytest.fixture(scope="session")
def clean(cache: Path) -> Glyphs:
    """The glyphs as rendered."""
    return glyphs.bitmaps(cache)
