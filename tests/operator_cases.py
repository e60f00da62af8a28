"""What the tests of every operator share."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest
import torch
from oracle import METRICS
from torch import Tensor

from dmlfast import _library

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# None in a checkout that has not been built, where tests are collected, too.
ISAS = _library.module.usable_cpu_isas() if _library.module else ()
NAMESPACE = {"kernel": "dmlfast", "reference": "dmlfast_reference"}

each_metric = pytest.mark.parametrize("metric", METRICS)
each_backend = pytest.mark.parametrize("backend", ["kernel", "reference"])

# Inductor treats the operators as opaque: tracing and ahead-of-time autograd are what can fail,
# and need no C++ compiler.
compile_whole = partial(torch.compile, backend="aot_eager", fullgraph=True)


def assert_same_bits(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def opcheck(calls: Iterable[tuple], constants: torch.dtype | None = None) -> None:
    """Checks operators by arguments they were called with.

    Floating-point arguments are leaves, except those of a gradient's operator and of the dtype
    `constants`.
    """
    for function, arguments in calls:
        backward = function.overloadpacket.__name__.endswith("_backward")
        copies = tuple(
            a.detach()
            .clone()
            .requires_grad_(a.is_floating_point() and a.dtype != constants and not backward)
            if isinstance(a, Tensor)
            else a
            for a in arguments
        )
        torch.library.opcheck(function, copies)
