"""The bars that the figures of a run are held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["BARS", "Bar", "figures", "judge"]


@dataclass(frozen=True)
class Bar:
    """A figure and how good it has to be.

    Attributes:
        figure: its name among `figures`.
        title: what it is, for the table.
        relation: "<=" where less is better.
        bar: what is required.
        aim: what is wanted; None where the bar leaves nothing to wish for.
        unit: "ms" and "%" scale the figure, which is in seconds or a share.
    """

    figure: str
    title: str
    relation: Literal["<=", ">="]
    bar: float
    aim: float | None = None
    unit: Literal["", "ms", "%", "x"] = ""

    def reaches(self, value: float, goal: float) -> bool:
        """Whether a value is as good as a goal."""
        return value <= goal if self.relation == "<=" else value >= goal


BARS = (
    Bar("failed_tests", "tests on the GPU that fail", "<=", 0),
    Bar("memcheck_errors", "errors that memcheck finds", "<=", 0),
    Bar("racecheck_errors", "errors that racecheck finds", "<=", 0),
    Bar("reproducible", "operators with the same bits on every run", ">=", 1.0, unit="%"),
    Bar("exact", "selected rows equal to those of float64", ">=", 1.0, unit="%"),
    Bar("hardest_negative_128", "hardest negative, d=128, of the fp16 rate", ">=", 0.45, 0.60, "%"),
    Bar("hardest_negative_256", "hardest negative, d=256, of the fp16 rate", ">=", 0.45, 0.75, "%"),
    Bar("assignment", "assignment, N=1M, K=16384, of the fp16 rate", ">=", 0.45, unit="%"),
    Bar("eps_clustered", "EPS, N=32768, clustered", "<=", 1.0e-3, 0.6e-3, "ms"),
    Bar("eps_clustered_to_product", "... to x @ x.T in bf16", "<=", 1.0, unit="x"),
    Bar("eps_random", "EPS, N=32768, random", "<=", 2.2e-3, 1.5e-3, "ms"),
    Bar("multi_similarity", "multi-similarity, N=32768", "<=", 3.5e-3, 2.2e-3, "ms"),
    Bar("nearest_positive", "nearest positive, N=131072, order known", "<=", 1e-4, 4e-5, "ms"),
    Bar("eps_to_peer", "pytorch-metric-learning to EPS, N=16384", ">=", 60, 100, "x"),
    Bar("collapsed", "EPS, collapsed to ordinary batches", "<=", 5, 2, "x"),
    Bar("largest", "EPS, N=1,048,576 runs", ">=", 1),
    Bar("eps_memory", "extra memory of EPS, in sizes of x", "<=", 6, 3, "x"),
    Bar("multi_similarity_memory", "... of multi-similarity", "<=", 6, 3, "x"),
)


def judge(values: Mapping[str, float | None], bars: Iterable[Bar] = BARS) -> list[dict[str, Any]]:
    """Each bar with its figure, and whether bar and aim are met: None where nothing is known."""
    rows = []
    for bar in bars:
        value = values.get(bar.figure)
        rows.append(
            {
                **asdict(bar),
                "value": value,
                "met": None if value is None else bar.reaches(value, bar.bar),
                "aim_met": (
                    None if value is None or bar.aim is None else bar.reaches(value, bar.aim)
                ),
            }
        )
    return rows


def figures(stages: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures that the bars speak of, from the results of the stages; None where missing."""

    def of(case: str, contestant: str, figure: str) -> float | None:
        found = _find(stages, "speed", "cases", case, "contestants", contestant, figure)
        return found if isinstance(found, int | float) else None

    def median(case: str, contestant: str = "kernel") -> float | None:
        return of(case, contestant, "median")

    def share(case: str) -> float | None:
        return _ratio(of(case, "kernel", "operations_per_second"), half_rate)

    half_rate = _find(stages, "speed", "cases", "ceilings", "operations_per_second", "float16")
    collapsed = [
        _ratio(median("eps_collapsed", name), median("eps_collapsed", "ordinary"))
        for name in ("one point", "two points")
    ]
    tests = _find(stages, "test", "tests") or {}
    largest = _find(stages, "speed", "cases", "eps_largest", "contestants", "kernel", "status")
    return {
        # Tests that were all skipped say nothing.
        "failed_tests": tests["failed"] + tests["errors"]
        if tests.get("complete") and tests["passed"]
        else None,
        "memcheck_errors": _sanitized(stages, "memcheck"),
        "racecheck_errors": _sanitized(stages, "racecheck"),
        "reproducible": _find(stages, "determinism", "share"),
        "exact": _find(stages, "exactness", "share"),
        "hardest_negative_128": share("hardest_negative_128"),
        "hardest_negative_256": share("hardest_negative_256"),
        "assignment": share("assignment"),
        "eps_clustered": median("eps_clustered"),
        "eps_clustered_to_product": _ratio(
            median("eps_clustered"), median("eps_clustered", "product, bfloat16")
        ),
        "eps_random": median("eps_random"),
        "multi_similarity": median("multi_similarity"),
        "nearest_positive": median("nearest_positive", "kernel, order known"),
        "eps_to_peer": _ratio(median("eps_16384", "pytorch-metric-learning"), median("eps_16384")),
        "collapsed": None if None in collapsed else max(c for c in collapsed if c is not None),
        "largest": None if largest is None else float(largest == "measured"),
        "eps_memory": of("eps_random", "kernel", "extra_over_x"),
        "multi_similarity_memory": of("multi_similarity", "kernel", "extra_over_x"),
    }


def _sanitized(stages: Mapping[str, Any], tool: str) -> float | None:
    """Errors, where the program under the tool came to its end or did have errors."""
    known = _find(stages, "sanitizer", "tools", tool, "status") in ("clean", "errors")
    return _find(stages, "sanitizer", "tools", tool, "errors") if known else None


def _find(tree: Any, *names: str) -> Any:
    for name in names:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None
