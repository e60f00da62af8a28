"""Programs that run the CUDA kernels' own source on the CPU, under the sanitizers."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")  # in the order of csrc/metric.h
COMPILER = shutil.which("c++")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@functools.cache
def build(family: str, folder: Path) -> Path:
    """The program of tests/cuda_emulation/<family>.cpp, built once in a folder."""
    path = folder / family
    subprocess.run(
        [
            str(COMPILER),
            "-std=c++17",
            "-O1",
            "-g1",  # line numbers for the sanitizers' reports
            "-ffp-contract=off",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-DDMLFAST_EMULATION",
            # So few that blocks go on to further rows.
            "-DDMLFAST_MAXIMUM_GRID=3",
            f"-I{ROOT / 'csrc'}",
            f"-I{ROOT / 'csrc' / 'cuda'}",
            str(ROOT / "tests" / "cuda_emulation" / f"{family}.cpp"),
            "-o",
            str(path),
        ],
        check=True,
    )
    return path


def run(program: Path, folder: Path, case: bytes) -> bytes:
    """What the program makes of a case."""
    source, target = folder / "case", folder / "result"
    source.write_bytes(case)
    subprocess.run([program, source, target], check=True)
    return target.read_bytes()
