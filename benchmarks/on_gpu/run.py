"""A whole run: the stages in order, within the time there is, into one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from on_gpu.bars import figures, judge
from on_gpu.report import write_json
from on_gpu.stages import Context, Stage

__all__ = ["FORMAT", "Run"]

FORMAT = 1

# Without what these make, the stages after them have nothing to run.
_NEEDED = ("build",)


@dataclass
class Run:
    """A run and what it has found so far.

    Attributes:
        path: of the JSON file, written anew after each stage.
        machine: what `on_gpu.device` found.
        commit: of the sources.
        command: that led here, for the record.
        quick: small sizes, whose figures say nothing.
        seconds: for all stages together.
        say: called with a line before each stage and after it.
    """

    path: Path
    machine: Mapping[str, Any]
    commit: str
    command: str
    quick: bool
    seconds: float
    say: Callable[[str], None] = print
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def results(self, finished: bool) -> dict[str, Any]:
        """What the file holds."""
        # The bars are for the full sizes.
        measured = {n: s for n, s in self.stages.items() if not (self.quick and n == "speed")}
        values = figures(measured)
        return {
            "format": FORMAT,
            "command": self.command,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": self.commit,
            "finished": finished,
            "quick": self.quick,
            "machine": dict(self.machine),
            "stages": self.stages,
            "figures": values,
            "bars": judge(values),
        }

    def all(self, stages: Mapping[str, Stage]) -> dict[str, Any]:
        """Run stages in order; returns what the file holds in the end."""
        end = time.monotonic() + self.seconds
        names = list(stages)
        missing = ""
        for place, name in enumerate(names):
            if missing:
                self.stages[name] = {"status": "not run", "summary": f"{missing} did not pass"}
                continue
            later = sum(stages[other].least for other in names[place + 1 :])
            left = end - time.monotonic()
            limit = min(stages[name].limit, max(left - later, min(left, stages[name].least)))
            self._one(name, stages[name], limit)
            if name in _NEEDED and self.stages[name]["status"] != "passed":
                missing = name
            write_json(self.results(finished=False), self.path)
        results = self.results(finished=True)
        write_json(results, self.path)
        return results

    def _one(self, name: str, stage: Stage, limit: float) -> None:
        if limit <= 1:
            self.stages[name] = {"status": "not run", "summary": "no time left"}
            return
        self.say(f"{name}: {stage.does}, at most {limit:.0f} s")
        began = time.monotonic()

        def keep(so_far: Mapping[str, Any]) -> None:
            self.stages[name] = dict(so_far)
            write_json(self.results(finished=False), self.path)

        try:
            result = stage.run(Context(limit, self.machine, self.quick, keep))
        except Exception as error:  # what went wrong in one stage must not cost the others
            result = {"status": "failed", "summary": f"{type(error).__name__}: {error}"}
        result["limit"] = limit
        result["seconds"] = time.monotonic() - began
        self.stages[name] = result
        self.say(f"{name}: {result['status']}, {result['seconds']:.0f} s. {result['summary']}")


def failed(results: Mapping[str, Any]) -> Sequence[str]:
    """The stages that did not pass; one whose tool is not there does not count."""
    fine = ("passed", "not available")
    return [name for name, stage in results["stages"].items() if stage["status"] not in fine]
