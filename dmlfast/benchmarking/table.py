"""Tables of results: in full for a Markdown file, and short for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dmlfast.benchmarking.results import CaseResult, ContestantResult, Results, WorkloadResult

__all__ = ["BEGIN", "END", "around_table", "markdown", "short_table", "update_table"]

BEGIN = "<!-- begin: written by dmlfast bench -->"
END = "<!-- end: written by dmlfast bench -->"

_HEAD = (
    "| N | d | contestant | median | quartiles | peak memory | to yardstick | to kernel | of peak |"
)
_RULE = "|--:|--:|---|--:|--:|--:|--:|--:|--:|"
_MACHINE = ("processor", "cores", "threads", "memory", "CPU instruction set in use", "CUDA device")


def update_table(path: Path, results: Results, folder: Path) -> None:
    """Replace what lies between the markers of a Markdown file by the table of the results.

    Args:
        path: the Markdown file; the lines `BEGIN` and `END` stand in it once each, in this order.
        results: what `dmlfast.benchmarking.compare` returned.
        folder: where `results.json` and `time_memory.png` lie, for the links.

    Raises:
        ValueError: the markers are missing or out of order.
    """
    before, after = around_table(path)
    block = markdown(results, os.path.relpath(folder, path.parent))
    path.write_text(f"{before}{BEGIN}\n\n{block}\n{END}{after}", encoding="utf-8")


def around_table(path: Path) -> tuple[str, str]:
    """What stands before and after the markers of a Markdown file.

    Raises:
        ValueError: the markers are missing or out of order.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"{path}: expected the lines {BEGIN!r} and {END!r} once each, in order")
    return before, after


def markdown(results: Results, folder: str) -> str:
    """The results in full, with the links into their folder."""
    machine = results["machine"]
    settings = results["settings"]
    lines = [
        f"`{results['command']}`, {results['date'][:10]}, commit {machine['commit']}, "
        f"in [results.json]({folder}/results.json).",
        "",
        *(f"- {name}: {machine[name]}" for name in _MACHINE if name in machine),
        "- versions: " + ", ".join(f"{name} {number}" for name, number in _versions(results)),
        f"- rounds: at most {settings['rounds']:g}, none after {settings['patience']:g} s of steps"
        " (a slow contestant may have one)",
        f"- memory budget: {settings['budget_gib']:g} GiB; "
        f"too slow: over {settings['deadline']:g} s",
        f"- peak: {results['peak_operations_per_second'] / 1e9:.0f} GFLOP/s of float32 "
        "multiply-adds",
        "",
    ]
    if any(len(workload["cases"]) > 1 for workload in results["workloads"]):
        lines += [f"![Time and memory against N]({folder}/time_memory.png)", ""]
    if not results["finished"]:
        lines += ["**Unfinished.**", ""]
    for workload in results["workloads"]:
        lines += [
            f"### {workload['name']}",
            "",
            f"{workload['summary']}; yardstick: {workload['yardstick']}.",
            "",
            _HEAD,
            _RULE,
            *_rows(workload),
            "",
        ]
    return "\n".join(lines)


def short_table(results: Results) -> list[tuple[str, list[tuple[str, ...]]]]:
    """For a terminal: each workload at its largest size where the kernel was measured.

    Returns:
        A title and rows for each: contestant, median, peak memory, ratio to the yardstick, ratio
        to the kernel.
    """
    tables = []
    for workload in results["workloads"]:
        case = _largest(workload)
        title = f"{workload['name']}, N={case['rows']}, d={case['dimensions']}"
        rows: list[tuple[str, ...]] = [
            (name, *_cells(result)) for name, result in case["contestants"].items()
        ]
        tables.append((title, rows))
    return tables


def _largest(workload: WorkloadResult) -> CaseResult:
    cases = workload["cases"]
    measured = [c for c in cases if c["contestants"][workload["kernel"]]["median"] is not None]
    return (measured or cases)[-1]


def _versions(results: Results) -> Iterator[tuple[str, str]]:
    yield "dmlfast", results["machine"]["dmlfast"]
    yield "Python", results["machine"]["python"]
    yield from results["peers"].items()


def _rows(workload: WorkloadResult) -> Iterator[str]:
    for case in workload["cases"]:
        for name, result in case["contestants"].items():
            median, peak, to_yardstick, to_kernel = _cells(result)
            quartiles = _quartiles(result)
            fraction = _number(result["fraction_of_peak"], "{:.0%}")
            shown = f"**{name}**" if name == workload["kernel"] else name
            yield (
                f"| {case['rows']} | {case['dimensions']} | {shown} | {median} | {quartiles} "
                f"| {peak} | {to_yardstick} | {to_kernel} | {fraction} |"
            )


def _cells(result: ContestantResult) -> tuple[str, str, str, str]:
    """Median or that there is none, peak memory, and both ratios."""
    median = result["median"]
    return (
        _time(median) if median is not None else result["status"],
        _number(result["peak_mib"], "{:,.1f} MiB"),
        _number(result["to_yardstick"], "{:.2f}"),
        _number(result["to_kernel"], "{:.2f}"),
    )


def _quartiles(result: ContestantResult) -> str:
    """What the middle half of the rounds took; why there is none where that is not clear."""
    lower, upper = result["lower_quartile"], result["upper_quartile"]
    if lower is None or upper is None:
        return result["message"].replace("|", "\\|") if result["status"] == "failed" else ""
    return f"{_time(lower)} to {_time(upper)}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _time(seconds: float) -> str:
    """Three digits, in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} µs"


def _three_digits(value: float) -> str:
    # What rounds to the next power of ten has one digit less after the point.
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"
