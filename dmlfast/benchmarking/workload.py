"""What is measured: a task, its sizes, and those who carry it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Case", "Contestant", "Inputs", "Step", "Workload"]


@dataclass(frozen=True)
class Case:
    """A size: `rows` embeddings of `dimensions` numbers, `per_class` of them in each class."""

    rows: int
    dimensions: int = 128
    per_class: int = 4

    def __str__(self) -> str:
        return f"N={self.rows}, d={self.dimensions}, {self.per_class} per class"


@dataclass(frozen=True)
class Inputs:
    """What every contestant is given: the same values.

    Attributes:
        x: (N, d) float32 rows of length 1, directions uniform on the sphere.
        labels: (N,) int64 classes, `per_class` rows each, in order.
    """

    x: Tensor
    labels: Tensor

    @classmethod
    def of(cls, case: Case) -> Inputs:
        """The inputs of a size; the same on every call."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(case.rows, case.dimensions, generator=generator)
        labels = torch.arange(case.rows) // case.per_class
        return cls(torch.nn.functional.normalize(x), labels)

    def to(self, device: torch.device | str) -> Inputs:
        """The same values on a device."""
        return Inputs(self.x.to(device), self.labels.to(device))

    def leaf(self) -> Tensor:
        """A copy of `x` that takes a gradient."""
        return self.x.clone().requires_grad_()


# A step does the work once. A contestant prepares a step, which is not measured: it imports what
# it needs, allocates what stays, builds its modules. Both are found by their import path, so that
# another process can be told of them: functions of a module or `functools.partial` of such.
Step = Callable[[], object]
Contestant = Callable[[Inputs], Step]


def _square_product(case: Case) -> float:
    return 2.0 * case.rows**2 * case.dimensions


@dataclass(frozen=True)
class Workload:
    """A task, its sizes, and those who carry it out.

    Attributes:
        name: as the command line and the tables know it.
        family: of operators that it exercises.
        summary: what a step computes, in one line.
        contestants: by the name that tables and pictures show.
        yardstick: the contestant whose time is the unit.
        cases: sizes, ascending.
        quick: a size that takes every contestant seconds.
        kernel: the contestant that the others are compared with.
        operations: floating-point operations that the task nominally takes, those of the bare
            product x @ x.T by default, whatever a contestant saves or adds; None where there is
            no such number. Divided by time, it is a rate.
    """

    name: str
    family: str
    summary: str
    contestants: Mapping[str, Contestant]
    yardstick: str
    cases: tuple[Case, ...]
    quick: Case
    kernel: str = "kernel"
    operations: Callable[[Case], float] | None = _square_product

    def __post_init__(self) -> None:
        for role, name in (("yardstick", self.yardstick), ("kernel", self.kernel)):
            if name not in self.contestants:
                raise ValueError(
                    f"{role}: expected a contestant of {self.name}, {tuple(self.contestants)}, "
                    f"got {name!r}"
                )

    def with_rows(self, rows: tuple[int, ...]) -> Workload:
        """The same task at these numbers of rows, everything else of its sizes unchanged."""
        sizes = {replace(case, rows=n): None for case in self.cases for n in sorted(set(rows))}
        return replace(self, cases=tuple(sorted(sizes, key=lambda c: (c.dimensions, c.rows))))

    def shortened(self) -> Workload:
        """The same task at its quick size alone."""
        return replace(self, cases=(self.quick,))
