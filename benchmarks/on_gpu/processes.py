"""Other processes: run within a time limit, and ended with all that they started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["ROOT", "Finished", "environment", "module", "run", "start", "stop", "tail"]

ROOT = Path(__file__).resolve().parents[2]

Status = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True)
class Finished:
    """How a process ended, and what it had written to stdout and stderr by then."""

    status: Status
    returncode: int | None
    seconds: float
    output: str

    def answer(self) -> Any:
        """What the last line of the output says in JSON; None where that is something else."""
        for line in reversed(self.output.splitlines()):
            if line.startswith("{"):
                try:
                    return json.loads(line)
                except json.JSONDecodeError:
                    return None
        return None


def environment(**additions: str) -> dict[str, str]:
    """This environment, with the checkout and this Python's programs first."""
    inherited = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "benchmarks"), *inherited.get("PYTHONPATH", "").split(":")]
    programs = [str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]
    return {
        **inherited,
        "PYTHONPATH": ":".join(path for path in paths if path),
        "PATH": ":".join([*programs, "/usr/local/cuda/bin"]),
        "PYTHONUNBUFFERED": "1",
        **additions,
    }


def module(name: str, *arguments: str) -> list[str]:
    """The command line of a module of this package, or of another one with a dot before it."""
    return [sys.executable, "-m", f"on_gpu.{name}", *arguments]


def start(
    command: Sequence[str], output: Any, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, so that `stop` reaches its children."""
    return subprocess.Popen(
        list(command),
        cwd=ROOT,
        env=environment(**(variables or {})),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that `start` started, with its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(
    command: Sequence[str], limit: float, variables: Mapping[str, str] | None = None
) -> Finished:
    """Run a process to its end, or to its limit in seconds."""
    return run_together({"": (command, variables or {})}, limit)[""]


def run_together(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], limit: float
) -> dict[str, Finished]:
    """Run processes side by side: the command and the variables of each, by a name."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, str(i)) for i, name in enumerate(commands)}
        running: dict[str, subprocess.Popen[bytes]] = {}
        finished: dict[str, Finished] = {}
        try:
            for name, (command, variables) in commands.items():
                with files[name].open("wb") as output:
                    try:
                        running[name] = start(command, output, variables)
                    except OSError as error:
                        finished[name] = Finished("failed", None, 0.0, str(error))
            for name, process in running.items():
                finished[name] = _finish(process, files[name], began, limit)
        finally:
            for process in running.values():
                stop(process)
    return finished


def _finish(process: subprocess.Popen[bytes], file: Path, began: float, limit: float) -> Finished:
    status: Status
    try:
        code = process.wait(max(0.0, began + limit - time.monotonic()))
        status = "passed" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        stop(process)
        status = "timed out"
    seconds = time.monotonic() - began
    # Children that outlive it belong to it.
    stop(process)
    output = file.read_bytes().decode(errors="replace")
    return Finished(status, process.returncode, seconds, output)


def tail(text: str, lines: int = 40, letters: int = 6000) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])[-letters:]
