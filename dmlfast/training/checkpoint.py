"""Checks of what a checkpoint holds, before a run goes on from it.

A file that torch can read may still be damaged, or written by something else. Everything is checked
that a run would otherwise trip over later, or silently compute other numbers from. The weights and
the random streams are left to torch, which refuses what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch

from dmlfast.training.summary import ROW_KEYS, Row


def check_step(step: object, steps: int) -> int:
    """The step of a checkpoint of a run of `steps` steps.

    Raises:
        ValueError: if it is none of them.
    """
    if not _is_whole(step) or not 0 <= step <= steps:
        raise ValueError(f"step: expected a whole number from 0 to {steps}, got {step!r}")
    return step


def check_history(history: object, step: int, evaluated: Sequence[str]) -> list[Row]:
    """The evaluations of a checkpoint, copied.

    Args:
        history: what the checkpoint holds.
        step: its step.
        evaluated: what the rows hold beside what every run evaluates.

    Raises:
        ValueError: if they are not what evaluations up to `step` can be.
    """
    if not isinstance(history, list):
        raise ValueError(f"history: expected a list, got {type(history).__name__}")
    keys = (*ROW_KEYS, *evaluated)
    last = 0
    for number, row in enumerate(history):
        where = f"history, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a dict, got {type(row).__name__}")
        for key in keys:
            if key not in row:
                raise ValueError(f"{where}: expected the keys of an evaluation, got no {key!r}")
        for key, value in row.items():
            if key not in keys:
                raise ValueError(f"{where}: expected the keys of an evaluation, got {key!r} too")
            # A metric is NaN where no query has a partner.
            if not _is_number(value) or not (
                math.isfinite(value) or ("/" in key and math.isnan(value))
            ):
                raise ValueError(f"{where}: expected a finite number for {key!r}, got {value!r}")
        if not _is_whole(row["step"]) or not last < row["step"] <= step:
            raise ValueError(
                f"{where}: expected a step from {last + 1} to {step}, got {row['step']!r}"
            )
        last = row["step"]
    return [dict(row) for row in history]


def check_sums(sums: object, step: int, history: Sequence[Row]) -> list[float]:
    """Number, loss and active share of the steps since the last evaluation, copied.

    Raises:
        ValueError: if they are not three finite numbers, or count other steps.
    """
    if (
        not isinstance(sums, list)
        or len(sums) != 3
        or not all(_is_number(value) and math.isfinite(value) for value in sums)
    ):
        raise ValueError(f"sums: expected three finite numbers, got {sums!r}")
    since = step - int(history[-1]["step"] if history else 0)
    if sums[0] != since:
        raise ValueError(f"sums: expected a count of {since} steps, got {sums[0]}")
    return list(sums)


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    settings: Sequence[Mapping[str, Any]],
    trained_steps: Callable[[torch.nn.Parameter], range],
) -> None:
    """Check an Adam that has read its state.

    Args:
        optimizer: the optimiser.
        settings: the `param_groups` of its `state_dict` before it read the state.
        trained_steps: how many steps it can have done on a parameter.

    Raises:
        ValueError: if its settings changed, or its moments are not those of its parameters.
    """
    for before, group in zip(settings, optimizer.state_dict()["param_groups"], strict=True):
        for name, value in before.items():
            if group.get(name) != value:
                raise ValueError(f"optimizer: expected {name} {value}, got {group.get(name)}")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            steps, done = trained_steps(parameter), int(state.get("step", 0))
            if done not in steps:
                expected = str(steps[-1]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
                raise ValueError(f"optimizer: expected step {expected}, got {done}")
            for name in ("exp_avg", "exp_avg_sq") if done else ():
                if state[name].shape != parameter.shape:
                    raise ValueError(
                        f"optimizer: expected {name} of shape {tuple(parameter.shape)}, "
                        f"got {tuple(state[name].shape)}"
                    )


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
