"""Cases for programs that read tests/cuda_emulation/labelled_case.h."""

from __future__ import annotations

from pathlib import Path

import emulation
import numpy as np
import torch
from emulation import METRICS
from torch import Tensor

# x, labels, references, reference_labels
Case = tuple[Tensor, Tensor, Tensor, Tensor]


def within(x: Tensor, labels: Tensor) -> Case:
    """A batch that is its own references."""
    return x, labels, x, labels


def run(
    program: Path,
    folder: Path,
    case: Case,
    metric: str,
    self_index: Tensor | None,
    options: list[int],
    others: tuple[Tensor, ...] = (),
) -> bytes:
    """What a program makes of rows and labels, options of its own, and further arrays."""
    x, labels, y, reference_labels = case
    header = [
        *x.shape[:1],
        *y.shape,
        x.dtype == torch.float64,
        METRICS.index(metric),
        self_index is not None,
        x is y and labels is reference_labels,
        *options,
    ]
    parts = [
        np.array(header, dtype=np.int64),
        x.numpy(),
        y.numpy(),
        labels.numpy(),
        labels.argsort(stable=True).numpy(),
        reference_labels.numpy(),
        reference_labels.argsort(stable=True).numpy(),
        *([] if self_index is None else [self_index.numpy()]),
        *(other.numpy() for other in others),
    ]
    return emulation.run(program, folder, b"".join(part.tobytes() for part in parts))


def read(content: bytes, *expected: Tensor) -> list[Tensor]:
    """Tensors of the dtypes and shapes of those expected."""
    offset, results = 0, []
    for like in expected:
        array = np.frombuffer(content, like.numpy().dtype, like.numel(), offset)
        offset += array.nbytes
        results.append(torch.from_numpy(array.copy()).reshape(like.shape))
    assert offset == len(content)
    return results


def assert_same(found: list[Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """The same indices, and the same distances to the last bit."""
    assert torch.equal(found[1], expected[1])
    # A value that no distance has stands for NaN.
    assert torch.equal(found[0].nan_to_num(-9.0), expected[0].nan_to_num(-9.0))
