"""The comparison: contestants take turns in one process, round after round."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from dmlfast import _library
from dmlfast.benchmarking.machine import describe_machine, peer_versions
from dmlfast.benchmarking.memory import available_gib
from dmlfast.benchmarking.results import (
    FORMAT,
    CaseResult,
    ContestantResult,
    Results,
    WorkloadResult,
    relate,
    timed,
    untimed,
    write_results,
)
from dmlfast.benchmarking.trial import Trial, Trials, message_of
from dmlfast.benchmarking.workload import Case, Inputs, Step, Workload

__all__ = ["BenchmarkProgress", "Settings", "compare", "interleave", "peak_rate", "wall_seconds"]

# Share of the available memory that contestants may take by default, and at most GiB.
_SHARE, _MOST_GIB = 0.8, 8.0


@dataclass(frozen=True)
class Settings:
    """How long and how far to go.

    Attributes:
        rounds: steps of each contestant at each size.
        budget_gib: resident memory that a contestant may take above its inputs.
        patience: seconds after which a contestant plays no further rounds; it plays one at least.
        deadline: seconds for a contestant's preparation and two steps before it is too slow.
    """

    rounds: int = 15
    budget_gib: float = _MOST_GIB
    patience: float = 10.0
    deadline: float = 60.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}: expected a number greater than 0, got {value}")

    @staticmethod
    def default_budget() -> float:
        """GiB: 8, or 80 % of what is available where that is less."""
        available = available_gib()
        return _MOST_GIB if available is None else min(_MOST_GIB, round(_SHARE * available, 1))


@dataclass(frozen=True)
class BenchmarkProgress:
    """Where a comparison stands: `done` of `total` contestants at sizes; what comes next.

    Attributes:
        done: contestants at sizes whose memory or time was measured.
        total: of all of them.
        workload: the name of the one that comes next.
        doing: what comes next of it.
    """

    done: int
    total: int
    workload: str
    doing: str


def compare(
    workloads: Sequence[Workload],
    settings: Settings,
    path: Path,
    *,
    command: str = "",
    progress: Callable[[BenchmarkProgress], None] = lambda _: None,
) -> Results:
    """Measure every contestant of the workloads at every size, and write the results as JSON.

    Each contestant first makes an attempt in another process, which finds its peak memory and
    whether it keeps to the budget and the deadline; one that does not is left out at this size and
    at larger ones. Then those that remain are prepared in this process, make a step that does not
    count, and take turns. The file is written anew after every size.

    Args:
        workloads: what to measure.
        settings: how long and how far to go.
        path: of the JSON file, in a folder that exists.
        command: that led here, for the record.
        progress: called before anything that takes time.

    Returns:
        What the file holds.

    Raises:
        ValueError: the memory budget is more than the memory available.
    """
    available = available_gib()
    if available is not None and settings.budget_gib > available:
        raise ValueError(
            f"budget: expected at most the {available:.1f} GiB of memory that are available, "
            f"got {settings.budget_gib:g}"
        )
    results: Results = {
        "format": FORMAT,
        "command": command or " ".join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "finished": False,
        "machine": describe_machine(),
        "peers": peer_versions(),
        "settings": asdict(settings),
        "peak_operations_per_second": peak_rate(),
        "workloads": [],
    }
    total = 2 * sum(len(w.cases) * len(w.contestants) for w in workloads)
    counter = iter(range(total + 1))

    def report(workload: Workload, doing: str) -> None:
        progress(BenchmarkProgress(next(counter), total, workload.name, doing))

    with Trials(settings.budget_gib, settings.deadline) as trials:
        for workload in workloads:
            result: WorkloadResult = {
                "name": workload.name,
                "summary": workload.summary,
                "yardstick": workload.yardstick,
                "kernel": workload.kernel,
                "cases": [],
            }
            results["workloads"].append(result)
            for case in _cases(workload, settings, trials, results, report):
                result["cases"].append(case)
                write_results(results, path)
    results["finished"] = True
    write_results(results, path)
    return results


def _cases(
    workload: Workload,
    settings: Settings,
    trials: Trials,
    results: Results,
    report: Callable[[Workload, str], None],
) -> Iterator[CaseResult]:
    """The results of one workload, size after size."""
    # By contestant and everything of a size but its rows, which ascend.
    given_up: dict[tuple[str, int, int], Trial] = {}
    for case in workload.cases:
        outcomes: dict[str, Trial] = {}
        for name, contestant in workload.contestants.items():
            report(workload, f"{case}: {name}, memory")
            key = (name, case.dimensions, case.per_class)
            outcome = given_up.get(key) or trials.attempt(contestant, case)
            outcomes[name] = outcome
            if outcome.status in ("out of memory", "too slow", "not installed"):
                at = f" at N={case.rows}" if key not in given_up else ""
                given_up.setdefault(key, Trial(outcome.status, message=outcome.message + at))
        contestants = _measure(workload, case, outcomes, settings, report)
        relate(
            contestants,
            yardstick=workload.yardstick,
            kernel=workload.kernel,
            operations=None if workload.operations is None else workload.operations(case),
            peak=results["peak_operations_per_second"],
        )
        yield {**asdict(case), "contestants": contestants}  # type: ignore[typeddict-item]


def _measure(
    workload: Workload,
    case: Case,
    outcomes: Mapping[str, Trial],
    settings: Settings,
    report: Callable[[Workload, str], None],
) -> dict[str, ContestantResult]:
    """Prepare the contestants whose attempt succeeded, and let them take turns."""
    inputs = Inputs.of(case)
    steps: dict[str, Step] = {}
    failures: dict[str, str] = {}
    for name, contestant in workload.contestants.items():
        report(workload, f"{case}: {name}, time")
        if outcomes[name].status != "measured":
            continue
        try:
            step = contestant(inputs)
            step()
            steps[name] = step
        except Exception as error:
            failures[name] = message_of(error)
    seconds = interleave(steps, settings.rounds, settings.patience)
    contestants: dict[str, ContestantResult] = {}
    for name, outcome in outcomes.items():
        if name in seconds:
            contestants[name] = timed(seconds[name], outcome.peak_mib)
        elif name in failures:
            contestants[name] = untimed("failed", failures[name])
        else:
            contestants[name] = untimed(outcome.status, outcome.message)
    return contestants


def wall_seconds(step: Step) -> float:
    """Seconds that a step takes, by the clock of the host."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleave(
    steps: Mapping[str, Step],
    rounds: int,
    patience: float = float("inf"),
    seconds_of: Callable[[Step], float] = wall_seconds,
) -> dict[str, list[float]]:
    """Let steps take turns and return the seconds of each, in the order of the rounds.

    What disturbs the machine for a while disturbs all of them. Each round starts with another
    contestant, so that nobody always follows the same one. A step whose seconds sum up to more
    than `patience` plays no further rounds. Garbage is collected between rounds, never in a step.
    `seconds_of` makes a step and says how long it took.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    collects = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            gc.collect()
            first = number % max(1, len(names))
            for name in names[first:] + names[:first]:
                if sum(seconds[name]) > patience:
                    continue
                seconds[name].append(seconds_of(steps[name]))
    finally:
        if collects:
            gc.enable()
    return seconds


def peak_rate(steps: int = 1_000_000, rounds: int = 20) -> float:
    """Operations per second of the processor's float32 multiply-add units, two for each.

    The best of some rounds of multiply-adds in registers, with all threads of torch and the
    instruction set that dmlfast's kernels use. 0 without the compiled library.
    """
    if _library.module is None:
        return 0.0
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        operations = _library.module.cpu_multiply_add(steps)
        best = max(best, operations / (time.perf_counter() - start))
    return best
