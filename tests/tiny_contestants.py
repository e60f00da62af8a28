"""Contestants that do as their name says, by an import path that another process can follow."""

from __future__ import annotations

import os
import signal
import time

import torch

from dmlfast.benchmarking import Case, Inputs, Workload

MIB = 2**18  # float32 numbers


def tiny(inputs: Inputs):
    return lambda: inputs.x.sum()


def allocating(mebibytes: int, inputs: Inputs):
    """A step that fills memory for a moment."""
    return lambda: torch.ones(mebibytes * MIB).sum()


def keeping(mebibytes: int, inputs: Inputs):
    """Fills memory in its preparation, and does nothing with it."""
    kept = torch.ones(mebibytes * MIB)
    return lambda: kept[0]


def filling(mebibytes: int, inputs: Inputs):
    """Fills memory, then would take a minute."""

    def step():
        kept = torch.ones(mebibytes * MIB)
        time.sleep(60)
        return kept

    return step


def quadratic(inputs: Inputs):
    """A step that needs rows^2 / 4 KiB: 64 MiB at 256 rows."""
    return lambda: torch.ones(len(inputs.x) ** 2 * MIB // 1024).sum()


def refused(inputs: Inputs):
    return lambda: torch.empty(2**55, dtype=torch.uint8)


def killed(inputs: Inputs):
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def leaving(inputs: Inputs):
    return lambda: os._exit(3)


def sleeping(inputs: Inputs):
    return lambda: time.sleep(60)


def missing(inputs: Inputs):
    import dmlfast_has_no_such_module  # noqa: F401


def broken(inputs: Inputs):
    raise ValueError("out of order | today")


TINY = Workload(
    name="tiny",
    family="tiny",
    summary="a sum of all numbers",
    contestants={
        "unit": tiny,
        "kernel": tiny,
        "hungry": quadratic,
        "missing": missing,
        "broken": broken,
    },
    yardstick="unit",
    cases=(Case(64, 8), Case(256, 8), Case(512, 8)),
    quick=Case(64, 8),
)
