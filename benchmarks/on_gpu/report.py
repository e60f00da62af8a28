"""The results of a run: as JSON in a file, and as a short table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["table", "write_json"]

_WIDTH = 140
_LEFT_OUT = ("product, tf32", "product, float32")  # of the table, for room


def write_json(results: Mapping[str, Any], path: Path) -> None:
    """Write as JSON; `path` never holds half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        text = json.dumps(_plain(results), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """What JSON can hold: a number that is not finite, and anything else, as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def table(results: Mapping[str, Any]) -> str:
    """What was found, in under 60 lines of at most 140 columns."""
    machine = results["machine"]
    lines = [
        f"{machine.get('device', 'unknown device')}, driver {machine.get('driver', 'unknown')}, "
        f"torch {machine.get('torch', 'unknown')}, commit {results['commit']}",
        "",
        *_stages(results["stages"]),
        "",
        *_cases(results["stages"].get("speed", {}).get("cases", {})),
        "",
        f"{'':<46}{'measured':>12}{'bar':>12}{'aim':>12}",
        *(_bar(row) for row in results["bars"]),
    ]
    return "\n".join(line[:_WIDTH].rstrip() for line in lines)


def _stages(stages: Mapping[str, Any]) -> Iterator[str]:
    for name, stage in stages.items():
        seconds = stage.get("seconds")
        took = "" if seconds is None else f"{seconds:.0f} s"
        yield f"{name:<12} {stage['status']:<14} {took:>6}  {stage.get('summary', '')}"


def _cases(cases: Mapping[str, Any]) -> Iterator[str]:
    for name, case in cases.items():
        if name == "ceilings":
            yield f"{name}: {_ceilings(case)}"
            continue
        contestants = case.get("contestants", {})
        shown = sorted(contestants.items(), key=lambda pair: not pair[0].startswith("kernel"))
        cells = [f"{who} {_outcome(result)}" for who, result in shown if who not in _LEFT_OUT]
        size = f"N={case['rows']} d={case['dimensions']}" if "rows" in case else ""
        yield f"{name} {size}: {case.get('message') or ', '.join(cells)}"


def _ceilings(case: Mapping[str, Any]) -> str:
    if "bytes_per_second" not in case:
        return str(case.get("message", "not measured"))
    rates = ", ".join(
        f"{name} {rate / 1e12:.0f} TF/s" for name, rate in case["operations_per_second"].items()
    )
    return f"copy {case['bytes_per_second'] / 1e12:.2f} TB/s, {rates}"


def _outcome(result: Mapping[str, Any]) -> str:
    median = result.get("median")
    return result["status"] if median is None else _value(median, "ms")


def _bar(row: Mapping[str, Any]) -> str:
    value = "not measured" if row["value"] is None else _value(row["value"], row["unit"])
    bar = f"{row['relation']} {_value(row['bar'], row['unit'])}"
    aim = "" if row["aim"] is None else _value(row["aim"], row["unit"])
    verdict = {None: "", True: "met", False: "MISSED"}[row["met"]]
    if row["aim_met"]:
        verdict = "met, aim too"
    return f"{row['title']:<46}{value:>12}{bar:>12}{aim:>12}  {verdict}"


def _value(value: float, unit: str) -> str:
    scaled = value * {"ms": 1e3, "%": 100.0}.get(unit, 1.0)
    if unit == "%" and value < 1.0:
        # What is almost all is not all.
        return f"{min(scaled, 99.99):.2f} %"
    digits = f"{scaled:.3g}" if abs(scaled) < 1000 else f"{scaled:.0f}"
    return f"{digits} {unit}".rstrip()
