"""What pytest and compute-sanitizer say, as numbers."""

from __future__ import annotations

import re
from typing import TypedDict

__all__ = ["Sanitized", "Tests", "parse_pytest", "parse_sanitizer"]

_COUNTS = ("passed", "failed", "skipped", "errors")


class Tests(TypedDict):
    """Numbers of tests; `complete` is False where pytest did not reach its last line."""

    passed: int
    failed: int
    skipped: int
    errors: int
    complete: bool
    failures: list[str]


def parse_pytest(output: str) -> Tests:
    """The numbers in the output of `pytest -v -rfEs`.

    They come from its last line, or without one from the lines of the tests that had ended.
    """
    counts = dict.fromkeys(_COUNTS, 0)
    last = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s.*$", output, re.MULTILINE)
    if last:
        for number, word in re.findall(r"(\d+) (\w+)", last[-1]):
            name = "errors" if word == "error" else word
            if name in counts:
                counts[name] = int(number)
    else:
        for word in re.findall(r"::.* (PASSED|FAILED|SKIPPED|ERROR)\b", output):
            counts["errors" if word == "ERROR" else word.lower()] += 1
    return {
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "errors": counts["errors"],
        "complete": bool(last),
        "failures": re.findall(r"^(?:FAILED|ERROR) .*$", output, re.MULTILINE)[:40],
    }


class Sanitized(TypedDict):
    """What a tool of compute-sanitizer found.

    Attributes:
        status: "clean", "errors", "not available" where the tool or the device refuses, and
            "unfinished" where the program did not come to its end under it.
        errors: that it counted in its summary, warnings not among them; None without a summary.
        warnings: of racecheck.
        in_dmlfast: reports that name a kernel of dmlfast.
        summary: its own last words.
    """

    status: str
    errors: int | None
    warnings: int
    in_dmlfast: int
    summary: str


_REFUSED = re.compile(
    r"Device not supported|No such file or directory: 'compute-sanitizer'"
    r"|Unable to find injection library|No attachable process found"
)


def parse_sanitizer(output: str, done: str) -> Sanitized:
    """What compute-sanitizer's output says.

    Args:
        output: of the tool and the program, together.
        done: what the program prints when it has come to its end: no error found in a program
            that did not run says nothing.
    """
    own = [line[len("=========") :] for line in output.splitlines() if line.startswith("=========")]
    summaries = [line.strip() for line in own if "SUMMARY:" in line]
    summary = summaries[-1] if summaries else ""
    errors: int | None = None
    warnings = 0
    if found := re.search(r"\((\d+) errors?, (\d+) warnings?\)", summary):
        errors, warnings = int(found[1]), int(found[2])
    elif found := re.search(r"ERROR SUMMARY: (\d+) errors?", summary):
        errors = int(found[1])
    if _REFUSED.search(output):
        status = "not available"
    elif errors:
        status = "errors"
    elif errors is None or done not in output:
        status = "unfinished"
    else:
        status = "clean"
    # Reports stand in paragraphs of their own.
    reports = "\n".join(line.rstrip() for line in own).split("\n\n")
    in_dmlfast = sum("dmlfast" in report and " at " in report for report in reports)
    return {
        "status": status,
        "errors": errors,
        "warnings": warnings,
        "in_dmlfast": in_dmlfast,
        "summary": summary,
    }
