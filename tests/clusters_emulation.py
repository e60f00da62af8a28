"""Means of clusters and k-means by the CUDA kernels' own source on the CPU: cases."""

from __future__ import annotations

from pathlib import Path

import emulation
import numpy as np
import torch
from pairwise_emulation import SHARED_BYTES, decode
from torch import Tensor

OPERATORS = ("means", "seeds", "kmeans")


def encode(operator: str, x: Tensor, clusters: int, *arrays: Tensor, iterations: int = 0) -> bytes:
    header = [OPERATORS.index(operator), x.dtype == torch.float64, len(x), clusters, x.shape[1]]
    header += [iterations, SHARED_BYTES]
    parts = [np.array(header, dtype=np.int64), x.T.contiguous().numpy()]
    parts += [array.contiguous().numpy() for array in arrays]
    return b"".join(part.tobytes() for part in parts)


def numpy_dtype(x: Tensor) -> type:
    return np.float64 if x.dtype == torch.float64 else np.float32


def means(
    program: Path, folder: Path, x: Tensor, index: Tensor, clusters: int
) -> tuple[Tensor, Tensor]:
    content = emulation.run(program, folder, encode("means", x, clusters, index))
    shapes = (numpy_dtype(x), (clusters, x.shape[1])), (np.int64, (clusters,))
    mean, count = decode(content, *shapes)
    return mean, count


def kmeans(
    program: Path, folder: Path, x: Tensor, initial: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, the index of the rows and the history."""
    case = encode("kmeans", x, len(initial), initial, iterations=iterations)
    shapes = (numpy_dtype(x), tuple(initial.shape)), (np.int64, (len(x),))
    content = emulation.run(program, folder, case)
    centers, index, history = decode(content, *shapes, (np.float64, (iterations + 1,)))
    return centers, index, history


def seeds(program: Path, folder: Path, x: Tensor, uniform: Tensor) -> Tensor:
    case = encode("seeds", x, len(uniform), uniform)
    (index,) = decode(emulation.run(program, folder, case), (np.int64, (len(uniform),)))
    return index
