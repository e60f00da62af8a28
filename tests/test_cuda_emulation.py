"""The CUDA kernels' own source, run on the CPU under the address and undefined sanitizers."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlfast.reference import neighbors as reference

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")
COMPILER = shutil.which("c++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulation") / "neighbors"
    subprocess.run(
        [
            COMPILER,
            "-std=c++17",
            "-O1",
            "-g",
            "-ffp-contract=off",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-DDMLFAST_EMULATION",
            # So few that blocks go on to further rows.
            "-DDMLFAST_MAXIMUM_GRID=3",
            f"-I{ROOT / 'csrc'}",
            f"-I{ROOT / 'csrc' / 'cuda'}",
            str(ROOT / "tests" / "cuda_emulation" / "neighbors.cpp"),
            "-o",
            str(path),
        ],
        check=True,
    )
    return path


def make_case(anchors, references, dimensions, classes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    x = normal(anchors, dimensions)
    y = normal(references, dimensions)
    labels = torch.randint(-classes, classes, (anchors,), generator=generator)
    reference_labels = torch.randint(-classes, classes, (references,), generator=generator)
    if references > 4:
        y[3] = y[1]
        y[2] = 0
        y[4, 0] = math.nan
    if anchors > 4:
        x[1] = y[1]
        x[3, -1] = math.nan
        x[4, 0] = math.inf
    return x, labels, y, reference_labels


def run(program, folder, case, *, metric, same_class, farthest, self_index, beyond, grad):
    """The kernels' distance and index, and their gradients at the reference's index."""
    x, labels, y, reference_labels = case
    thresholds = 1 if beyond is None else beyond.shape[1]
    options = {"metric": metric, "same_class": same_class, "farthest": farthest}
    distance, index = reference.select(
        x, labels, y, reference_labels, self_index, beyond, **options
    )
    grads = reference.select_backward(grad, x, y, index, metric=metric)
    header = [
        *x.shape[:1],
        *y.shape,
        thresholds,
        x.dtype == torch.float64,
        METRICS.index(metric),
        same_class,
        farthest,
        self_index is not None,
        beyond is not None,
    ]
    parts = [
        np.array(header, dtype=np.int64),
        x.numpy(),
        y.numpy(),
        labels.numpy(),
        reference_labels.numpy(),
        reference_labels.argsort(stable=True).numpy(),
        *([] if self_index is None else [self_index.numpy()]),
        *([] if beyond is None else [beyond.double().numpy()]),
        grad.numpy(),
        index.numpy(),
        index.flatten().argsort(stable=True).numpy(),
    ]
    source, target = folder / "case", folder / "result"
    source.write_bytes(b"".join(part.tobytes() for part in parts))
    subprocess.run([program, source, target], check=True)
    content = target.read_bytes()
    kind = np.float64 if x.dtype == torch.float64 else np.float32
    offset, results = 0, []
    for shape, of in ((distance, kind), (index, np.int64), (x, kind), (y, kind)):
        array = np.frombuffer(content, of, shape.numel(), offset).reshape(shape.shape)
        offset += array.nbytes
        results.append(torch.from_numpy(array.copy()))
    return results, (distance, index, *grads)


def check(results, expected):
    distance, index, grad_x, grad_references = results
    assert torch.equal(index, expected[1])
    assert torch.equal(distance.nan_to_num(-7.0), expected[0].nan_to_num(-7.0))
    # The gradients' sums run in float64 in another order: one unit in the last place of the dtype.
    tolerance = {"rtol": 4 * torch.finfo(grad_x.dtype).eps, "atol": 1e-12, "equal_nan": True}
    torch.testing.assert_close(grad_x, expected[2], **tolerance)
    torch.testing.assert_close(grad_references, expected[3], **tolerance)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("same_class", "farthest"), [(True, False), (True, True), (False, False)])
# One candidate a thread and several; a class of one; fewer rows than threads and more.
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 5, 3, 2), (9, 300, 5, 2), (40, 33, 17, 30)])
def test_selection_and_its_gradients_equal_the_reference(
    program, tmp_path, metric, same_class, farthest, shape
):
    case = make_case(*shape, torch.float32, seed=sum(shape))
    grad = torch.linspace(-1, 1, shape[0])[:, None].contiguous()
    self_index = torch.arange(shape[0]) % (shape[1] + 1) - 1
    results, expected = run(
        program,
        tmp_path,
        case,
        metric=metric,
        same_class=same_class,
        farthest=farthest,
        self_index=self_index,
        beyond=None,
        grad=grad,
    )
    check(results, expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds_are_strict_in_the_returned_distance(program, tmp_path, metric, dtype):
    case = make_case(20, 30, 4, 3, dtype, seed=11)
    x, labels, y, reference_labels = case
    options = {"metric": metric, "same_class": False, "farthest": False}
    nearest, _ = reference.select(x, labels, y, reference_labels, None, None, **options)
    below = torch.nextafter(nearest, torch.full_like(nearest, -math.inf))
    beyond = torch.cat([nearest, below, torch.full_like(nearest, math.inf)], 1)
    results, expected = run(
        program,
        tmp_path,
        case,
        metric=metric,
        same_class=False,
        farthest=False,
        self_index=None,
        beyond=beyond,
        grad=torch.ones(20, 3, dtype=dtype),
    )
    check(results, expected)


def test_no_references_find_nothing(program, tmp_path):
    case = make_case(3, 0, 4, 2, torch.float32, seed=1)
    results, expected = run(
        program,
        tmp_path,
        case,
        metric="cosine",
        same_class=True,
        farthest=False,
        self_index=None,
        beyond=None,
        grad=torch.ones(3, 1),
    )
    check(results, expected)
    assert results[1].flatten().tolist() == [-1, -1, -1]
