"""The process that times: `python -m on_gpu.speed --events FILE case ...`; see `watch`."""

from __future__ import annotations

import argparse
import gc
import json
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dmlfast.benchmarking.compare import interleave
from dmlfast.benchmarking.results import relate, timed, untimed
from dmlfast.benchmarking.trial import message_of
from dmlfast.benchmarking.workload import Contestant, Inputs, Step
from on_gpu.cases import CASES, TimedCase
from on_gpu.clock import Clock, ceilings, extra_memory, synchronize
from on_gpu.data import search_counts

__all__ = ["CEILINGS", "Timer"]

CEILINGS = "ceilings"

# Rounds, and seconds of steps after which a contestant plays no further ones.
ROUNDS, PATIENCE = 21, 1.5
# Seconds that the watching process gives beyond a deadline, which a step on the device cannot hear.
_GRACE = 15.0


class TooSlow(BaseException):
    """The deadline has passed. Not an Exception, which a contestant might handle itself."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TooSlow in the block when it takes longer, as soon as Python is in charge."""

    def raise_it(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Timer:
    """Times cases on a device, and tells in a file what it is doing.

    Args:
        device: "cuda", or "cpu" to try it out.
        quick: small sizes.
        events: the file; see `on_gpu.watch`.
    """

    def __init__(self, device: str, quick: bool, events: Path) -> None:
        self._device = device
        self._quick = quick
        self._events = events

    def measure(self, name: str, excluded: Mapping[str, Mapping[str, str]]) -> None:
        """Time a case without some contestants, and tell the result."""
        if name == CEILINGS:
            self._tell(doing="timing", case=name, deadline=60.0)
            result = ceilings(self._device, self._quick)
        else:
            result = self._case(name, CASES[name], excluded)
        self._release()
        self._tell(doing="done", case=name, result=result)

    def _case(
        self, name: str, case: TimedCase, excluded: Mapping[str, Mapping[str, str]]
    ) -> dict[str, Any]:
        self._tell(doing="timing", case=name, deadline=60.0)
        inputs = case.inputs(self._device, self._quick)
        steps: dict[str, Step] = {}
        results: dict[str, dict[str, Any]] = {}
        counts: Any = None
        for who, contestant in case.contestants.items():
            if who in excluded:
                results[who] = dict(untimed(**excluded[who]))  # type: ignore[arg-type]
                continue
            seconds = case.deadline_of(who)
            self._tell(doing="preparing", case=name, contestant=who, deadline=seconds + _GRACE)
            step, results[who] = self._prepare(contestant, inputs, seconds)
            if step is not None:
                steps[who] = step
            if who == case.kernel and case.columns is None:
                counts = search_counts(inputs.x, inputs.labels)
        self._tell(doing="timing", case=name, deadline=2 * PATIENCE * len(steps) + 30.0)
        self._take_turns(case, steps, results)
        rows, dimensions = inputs.x.shape
        columns = case.columns or rows
        relate(
            results,  # type: ignore[arg-type]
            yardstick=case.yardstick,
            kernel=case.kernel,
            operations=2.0 * rows * columns * dimensions if case.operations else None,
            peak=0.0,
        )
        return {
            "rows": rows,
            "columns": columns,
            "dimensions": dimensions,
            "per_class": case.size.per_class,
            "kind": case.kind,
            "yardstick": case.yardstick,
            "search_counts": counts,
            "contestants": results,
        }

    def _prepare(
        self, contestant: Contestant, inputs: Inputs, seconds: float
    ) -> tuple[Step | None, dict[str, Any]]:
        """The step, unless it failed or one was enough; and its result without the turns."""
        x_bytes = inputs.x.element_size() * inputs.x.numel()
        try:
            with deadline(seconds):
                step = contestant(inputs)
                synchronize(self._device)
                before = torch.cuda.memory_allocated() if self._device == "cuda" else 0
                first = Clock(self._device)
                memory: int | None = None
                took = 0.0

                def timed_step() -> None:
                    nonlocal took
                    took = first(step)

                memory = extra_memory(self._device, before, timed_step)
                if took <= PATIENCE:
                    memory = extra_memory(self._device, before, step)
        except TooSlow:
            self._release()
            return None, dict(untimed("too slow", f"over {seconds:g} s for two steps"))
        except Exception as error:  # whatever a contestant raises is its result
            self._release()
            return None, dict(_failure(error))
        self._release()
        figures = {
            "extra_bytes": memory,
            "extra_over_x": None if memory is None else memory / x_bytes,
        }
        if took > PATIENCE:
            alone = dict(timed([took], None))
            alone["message"] = "one step, the first"
            return None, alone | figures
        return step, figures

    def _take_turns(
        self, case: TimedCase, steps: Mapping[str, Step], results: dict[str, dict[str, Any]]
    ) -> None:
        clock = Clock(self._device)
        ready = {}
        for who, step in steps.items():
            try:
                clock(step)
                clock(step)
            except Exception as error:  # beside the others there may be too little memory
                results[who] = dict(_failure(error))
            else:
                ready[who] = step
        for who, seconds in interleave(ready, ROUNDS, PATIENCE, clock).items():
            figures = results[who]
            calls = case.calls.get(who, 1)
            results[who] = dict(timed([s / calls for s in seconds], None)) | figures
        synchronize(self._device)

    def _release(self) -> None:
        # After a fault on the device every later call fails: then this ends the process, and the
        # one that watches starts another.
        synchronize(self._device)
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _tell(self, **event: Any) -> None:
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _failure(error: Exception) -> Any:
    text = message_of(error)
    if isinstance(error, ImportError):
        return untimed("not installed", text)
    if isinstance(error, torch.OutOfMemoryError):
        return untimed("out of memory", text)
    return untimed("failed", text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--names", action="store_true", help="print the cases and do nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--events", type=Path)
    parser.add_argument("--without", type=json.loads, default={})
    options = parser.parse_args()
    if options.names:
        print(json.dumps({"cases": [CEILINGS, *CASES]}))
        return
    warnings.simplefilter("ignore")
    timer = Timer(options.device, options.quick, options.events)
    for name in options.cases:
        timer.measure(name, options.without.get(name, {}))


if __name__ == "__main__":
    main()
