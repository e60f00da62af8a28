"""The process that times, watched: ended when it hangs, and started again for what is left."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from on_gpu.processes import start, stop, tail

__all__ = ["watch"]

# Seconds for a process to import torch and find the device.
_START = 60.0
# Between two looks.
_LOOK = 0.05

# Contestants left out, by case and name, with the result that stands for them.
Excluded = dict[str, dict[str, dict[str, str]]]
Command = Callable[[Sequence[str], Excluded, Path], Sequence[str]]


def watch(
    command: Command,
    cases: Sequence[str],
    limit: float,
    keep: Callable[[str, Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Have cases measured one after the other, whatever becomes of the process that does it.

    The process tells in a file, a JSON object a line, what it is doing and in how many seconds it
    should be done: {"doing": "preparing", "case", "contestant", "deadline"}, {"doing": "timing",
    "case", "deadline"}, {"doing": "done", "case", "result"}. One that hangs or dies is started
    again without the contestant that it was preparing, or without the case that it was timing.

    Args:
        command: the command line that measures cases without some contestants, and the file.
        cases: in this order.
        limit: seconds for all of them.
        keep: called with each result, at once.

    Returns:
        Results by case; a case without one has a "message" why.
    """
    end = time.monotonic() + limit
    results: dict[str, Any] = {}
    excluded: Excluded = {}

    def done(case: str, result: Mapping[str, Any]) -> None:
        results[case] = result
        keep(case, result)

    while waiting := [case for case in cases if case not in results]:
        if time.monotonic() >= end:
            break
        culprit, status, message = _once(command, waiting, excluded, end, done)
        if not status:
            break
        case = culprit.get("case", waiting[0]) if culprit else waiting[0]
        if culprit and "contestant" in culprit:
            outcome = {"status": status, "message": message}
            excluded.setdefault(case, {})[culprit["contestant"]] = outcome
        elif case not in results:
            done(case, {"message": f"{status}: {message}"})
    for case in cases:
        if case not in results:
            done(case, {"message": "no time left"})
    return results


def _once(
    command: Command,
    cases: Sequence[str],
    excluded: Excluded,
    end: float,
    done: Callable[[str, Mapping[str, Any]], None],
) -> tuple[dict[str, Any] | None, str, str]:
    """One life of the process: what it was doing when it had to be ended or died, and why.

    The status is empty when it came to its end, or when there is no time left.
    """
    with tempfile.TemporaryDirectory() as folder:
        events, log = Path(folder, "events"), Path(folder, "log")
        events.touch()
        with log.open("wb") as output:
            process = start(command(cases, excluded, events), output)
        doing: dict[str, Any] | None = None
        until = time.monotonic() + _START
        position = 0
        try:
            while True:
                ended = process.poll() is not None
                # Read after it was seen to have ended: nothing can come any more.
                lines, position = _new_lines(events, position)
                for line in lines:
                    event = json.loads(line)
                    if event["doing"] == "done":
                        done(event["case"], event["result"])
                        doing, until = None, time.monotonic() + _START
                    else:
                        doing, until = event, time.monotonic() + event["deadline"]
                now = time.monotonic()
                if ended:
                    if process.returncode == 0:
                        return None, "", ""
                    said = tail(log.read_bytes().decode(errors="replace"), 3, 600)
                    return doing, "failed", f"exit code {process.returncode}: {said}"
                if now >= end:
                    return None, "", ""
                if now >= until:
                    return doing, "too slow", "its process did not answer in time and was ended"
                time.sleep(_LOOK)
        finally:
            stop(process)


def _new_lines(file: Path, position: int) -> tuple[list[str], int]:
    """Whole lines that were added to a file, and the position after them."""
    with file.open("rb") as stream:
        stream.seek(position)
        added = stream.read()
    whole = added[: added.rfind(b"\n") + 1]
    return whole.decode().splitlines(), position + len(whole)
