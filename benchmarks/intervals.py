"""Means over runs with their 95 % intervals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

# Half width of a 95 % interval of a mean, in standard errors: Student's t by number of runs.
STUDENT = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
    11: 2.228,
    12: 2.201,
    13: 2.179,
    14: 2.160,
    15: 2.145,
    16: 2.131,
    17: 2.120,
    18: 2.110,
    19: 2.101,
    20: 2.093,
}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and half width of the 95 % interval of two or more values."""
    deviation = statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.fmean(values), "half_width": STUDENT[len(values)] * deviation}


def shown_difference(difference: Mapping[str, float]) -> str:
    """An interval of a difference in Markdown, in bold when it leaves out 0."""
    mean, half = difference["mean"], difference["half_width"]
    text = f"{mean:+.4f} ± {half:.4f}"
    return f"**{text}**" if abs(mean) > half else text
