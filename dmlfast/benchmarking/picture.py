"""The results as a picture of time and memory against N."""

from __future__ import annotations

from pathlib import Path

from dmlfast.benchmarking.results import Results, WorkloadResult
from dmlfast.plots import ScalingLine, plot_scaling

__all__ = ["draw_results", "scaling_lines"]


def draw_results(results: Results, path: Path) -> bool:
    """Write the workloads that have several sizes as a PNG, two panels each.

    Returns:
        Whether there was such a workload; without one nothing is written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = {_title(workload): scaling_lines(workload) for workload in results["workloads"]}
    several = {
        title: lines for title, lines in rows.items() if any(len(line.rows) > 1 for line in lines)
    }
    if not several:
        return False
    plot_scaling(several, path, budget_mebibytes=1024 * results["settings"]["budget_gib"])
    return True


def _title(workload: WorkloadResult) -> str:
    return workload["summary"][:1].upper() + workload["summary"][1:]


def scaling_lines(workload: WorkloadResult) -> list[ScalingLine]:
    """A line for each contestant, at the sizes that share the first one's dimensions."""
    first = workload["cases"][0]
    cases = [
        case
        for case in workload["cases"]
        if (case["dimensions"], case["per_class"]) == (first["dimensions"], first["per_class"])
    ]
    roles = {workload["yardstick"]: "yardstick", workload["kernel"]: "kernel"}
    lines = []
    for name in first["contestants"]:
        measured = [case for case in cases if case["contestants"][name]["median"] is not None]
        stops = (
            (case["rows"], case["contestants"][name]["status"])
            for case in cases
            if case["contestants"][name]["status"] in ("out of memory", "too slow")
        )
        lines.append(
            ScalingLine(
                name,
                [case["rows"] for case in measured],
                [case["contestants"][name]["median"] or 0.0 for case in measured],
                [case["contestants"][name]["peak_mib"] for case in measured],
                role=roles.get(name, ""),
                stopped=next(stops, None),
            )
        )
    return lines
