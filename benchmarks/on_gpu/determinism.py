"""Whether every operator gives the same bits on every run: `python -m on_gpu.determinism`."""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import torch
from torch import Tensor

from on_gpu.operators import CALLS, Call, inputs, results, served_by_kernels

__all__ = ["same_bits", "survey"]

RUNS, RUNS_OF_PLAIN_TORCH = 100, 5
SIZES = ((301, 33), (1024, 128))


def same_bits(first: list[Tensor], other: list[Tensor]) -> bool:
    """Whether tensors are equal to the bit; a NaN equals the same NaN."""
    return len(first) == len(other) and all(
        torch.equal(_bits(a), _bits(b)) for a, b in zip(first, other, strict=True)
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def survey(
    device: str,
    runs: int = RUNS,
    runs_of_plain_torch: int = RUNS_OF_PLAIN_TORCH,
    sizes: tuple[tuple[int, int], ...] = SIZES,
) -> dict[str, Any]:
    """Every operator, forward and backward, run after run on the same inputs."""
    served = served_by_kernels(device)
    operators: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for name, call in CALLS.items():
            kernel = name in served
            count = runs if kernel else runs_of_plain_torch
            # Plain torch walks the dimensions one by one: the small size does.
            some = sizes if kernel else sizes[:1]
            operators[name] = {
                "kernel": kernel,
                "runs": count,
                **_compare(call, count, some, device),
            }
    same = sum(found["different"] == 0 for found in operators.values())
    return {
        "summary": f"{same} of {len(operators)} operators the same on every run, "
        f"{len(served)} of them served by kernels, {runs} times",
        "share": same / len(operators),
        "sizes": sizes,
        "operators": operators,
    }


def _compare(
    call: Call, runs: int, sizes: tuple[tuple[int, int], ...], device: str
) -> dict[str, Any]:
    """How many runs gave other bits than the first at their size; None where a run raised."""
    different = 0
    try:
        for rows, dimensions in sizes:
            of = inputs(rows, dimensions, torch.float32, device)
            first = results(call, of)
            different += sum(not same_bits(first, results(call, of)) for _ in range(runs - 1))
    except Exception as error:  # the others are to be compared as well
        return {"different": None, "raised": str(error).partition("\n")[0]}
    return {"different": different}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    runs = (3, 2, ((65, 17),)) if options.quick else ()
    print(json.dumps(survey(options.device, *runs)))


if __name__ == "__main__":
    main()
