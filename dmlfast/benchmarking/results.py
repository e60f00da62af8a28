"""What a comparison found, as it stands in results.json."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import TypedDict

from dmlfast.benchmarking.trial import Status

__all__ = [
    "FORMAT",
    "CaseResult",
    "ContestantResult",
    "Results",
    "WorkloadResult",
    "read_results",
    "relate",
    "timed",
    "untimed",
    "write_results",
]

FORMAT = 1


class ContestantResult(TypedDict):
    """One contestant at one size; what could not be had is None.

    Attributes:
        status: whether there are figures, and if not, why.
        message: the reason in words.
        seconds: of every step, in the order of the rounds.
        median, lower_quartile, upper_quartile: of `seconds`.
        peak_mib: resident memory that a step needs above what was resident before it.
        to_yardstick, to_kernel: `median` over that of the yardstick and of the kernel.
        operations_per_second: the workload's nominal operations over `median`.
        fraction_of_peak: that rate over the machine's.
    """

    status: Status
    message: str
    seconds: list[float]
    median: float | None
    lower_quartile: float | None
    upper_quartile: float | None
    peak_mib: float | None
    to_yardstick: float | None
    to_kernel: float | None
    operations_per_second: float | None
    fraction_of_peak: float | None


class CaseResult(TypedDict):
    """The contestants at one size."""

    rows: int
    dimensions: int
    per_class: int
    contestants: dict[str, ContestantResult]


class WorkloadResult(TypedDict):
    """One workload at its sizes."""

    name: str
    summary: str
    yardstick: str
    kernel: str
    cases: list[CaseResult]


class Results(TypedDict):
    """A whole comparison, with what it was measured on and how.

    Attributes:
        finished: False while the comparison goes on, and when it was interrupted.
        settings: rounds, memory budget in GiB, seconds of patience and deadline.
        peak_operations_per_second: rate of the machine's float32 multiply-add units; 0 if unknown.
    """

    format: int
    command: str
    date: str
    finished: bool
    machine: dict[str, str]
    peers: dict[str, str]
    settings: dict[str, float]
    peak_operations_per_second: float
    workloads: list[WorkloadResult]


def untimed(status: Status, message: str) -> ContestantResult:
    """The result of a contestant without figures."""
    return {
        "status": status,
        "message": message,
        "seconds": [],
        "median": None,
        "lower_quartile": None,
        "upper_quartile": None,
        "peak_mib": None,
        "to_yardstick": None,
        "to_kernel": None,
        "operations_per_second": None,
        "fraction_of_peak": None,
    }


def timed(seconds: list[float], peak_mib: float | None) -> ContestantResult:
    """The result of a contestant from the seconds of its steps, at least one; without ratios."""
    result = untimed("measured", "")
    lower, upper = seconds[0], seconds[0]
    if len(seconds) > 1:
        lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    result["seconds"] = seconds
    result["median"] = statistics.median(seconds)
    result["lower_quartile"], result["upper_quartile"] = lower, upper
    result["peak_mib"] = peak_mib
    return result


def relate(
    contestants: dict[str, ContestantResult],
    *,
    yardstick: str,
    kernel: str,
    operations: float | None,
    peak: float,
) -> None:
    """Fill in ratios and rates, where both of their parts were measured."""
    unit, own = contestants[yardstick]["median"], contestants[kernel]["median"]
    for result in contestants.values():
        median = result["median"]
        if median is None:
            continue
        result["to_yardstick"] = median / unit if unit else None
        result["to_kernel"] = median / own if own else None
        if operations is not None:
            result["operations_per_second"] = operations / median
            result["fraction_of_peak"] = operations / median / peak if peak else None


def write_results(results: Results, path: Path) -> None:
    """Write as JSON; `path` never holds half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        ValueError: the file is not such a one, or of another format.
    """
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        found = results["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the results of `dmlfast bench`") from error
    if found != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {found}")
    return results
