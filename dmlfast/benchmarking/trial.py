"""A contestant's first attempt at a size, in a process of its own that may run out of memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Literal

import torch

from dmlfast.benchmarking.memory import give_back, peak_memory, resident
from dmlfast.benchmarking.workload import Case, Contestant, Inputs, Step

__all__ = ["Status", "Trial", "Trials", "message_of", "serve"]

Status = Literal["measured", "out of memory", "too slow", "not installed", "failed"]

# Seconds between two looks at the memory of the other process: far less than it takes to fill a
# GiB, far more than a look costs.
_LOOK = 0.01
# Seconds for the other process to import torch and make the inputs.
_START = 120.0

# Letters of a message.
_LONGEST = 160

# It finds what this process finds, and not what lies in the folder where it starts.
_PROGRAM = """
import sys
sys.path[:] = {path}
from dmlfast.benchmarking.trial import serve
serve({file}, {threads})
"""


@dataclass(frozen=True)
class Trial:
    """How an attempt ended.

    Attributes:
        status: "measured" when the contestant can do it within the budget and in time.
        peak_mib: MiB of resident memory that a step needs above what was resident before it; None
            without /proc or when the attempt did not succeed.
        message: why it did not succeed.
    """

    status: Status
    peak_mib: float | None = None
    message: str = ""


class Trials:
    """Attempts, one at a time, in another process, which is replaced when it has to be ended.

    The other process is a fresh interpreter: the threads of this one do not survive a fork.

    Args:
        budget_gib: resident memory that a contestant may take above its inputs.
        deadline: seconds for its preparation and two steps.
    """

    def __init__(self, budget_gib: float, deadline: float) -> None:
        self._budget_mib = 1024 * budget_gib
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def attempt(self, contestant: Contestant, case: Case) -> Trial:
        """Prepare a contestant and let it make two steps.

        Over the budget, killed by the system, or refused an allocation, it is out of memory.
        """
        connection = self._connection or self._start()
        try:
            connection.send((contestant, case))
            trial = self._watch(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            trial = self._of_a_death()
            self._end()
        return trial

    def _watch(self, connection: Connection) -> Trial:
        process = self._process
        assert process is not None
        before = self._receive(connection, _START)
        if isinstance(before, Trial):
            return before
        start = time.monotonic()
        while not connection.poll(_LOOK):
            now = resident(process.pid)
            if before is not None and now is not None and now - before > self._budget_mib:
                self._end()
                return self._over_budget()
            if time.monotonic() - start > self._deadline:
                self._end()
                return Trial("too slow", message=f"over {self._deadline:g} s for two steps")
        trial, most = connection.recv()
        # Between two looks it may have been over, too.
        if most is not None and most > self._budget_mib:
            return self._over_budget()
        assert isinstance(trial, Trial)
        return trial

    def _receive(self, connection: Connection, seconds: float) -> float | Trial | None:
        if not connection.poll(seconds):
            self._end()
            return Trial("failed", message=f"its process did not start within {seconds:g} s")
        before: float | Trial | None = connection.recv()
        return before

    def _over_budget(self) -> Trial:
        return Trial("out of memory", message=f"over {self._budget_mib / 1024:g} GiB")

    def _of_a_death(self) -> Trial:
        process = self._process
        assert process is not None
        code = process.wait()
        if code == -signal.SIGKILL:
            return Trial("out of memory", message="ended by the system")
        return Trial("failed", message=f"its process ended with exit code {code}")

    def _start(self) -> Connection:
        self._connection, theirs = Pipe()
        file = theirs.fileno()
        program = _PROGRAM.format(path=sys.path, file=file, threads=torch.get_num_threads())
        self._process = subprocess.Popen([sys.executable, "-c", program], pass_fds=[file])
        theirs.close()
        return self._connection

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def serve(file: int, threads: int) -> None:
    """Run the other process: attempts until nobody asks any more.

    Args:
        file: descriptor of the connection on which contestants and sizes come.
        threads: of torch.
    """
    connection = Connection(file)
    # Ctrl-C reaches both processes; the other one ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError):
        while True:
            contestant, case = connection.recv()
            inputs = Inputs.of(case)
            give_back()
            connection.send(resident(os.getpid()))
            connection.send(_attempt(contestant, inputs))


def _attempt(contestant: Contestant, inputs: Inputs) -> tuple[Trial, float | None]:
    """The attempt, and the most MiB that were ever resident above the inputs."""
    prepared: list[Step] = []

    def first() -> None:
        step = contestant(inputs)
        step()
        prepared.append(step)

    before = resident(os.getpid())
    try:
        most = peak_memory(first)
        kept = resident(os.getpid())
        peak = peak_memory(prepared[0])
    except Exception as error:
        return _trial_of(error), None
    if most is None or peak is None or before is None or kept is None:
        return Trial("measured"), None
    return Trial("measured", peak_mib=peak), max(most, kept - before + peak)


def message_of(error: Exception) -> str:
    """One line, not too long for a table."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _trial_of(error: Exception) -> Trial:
    text = message_of(error)
    if isinstance(error, ImportError):
        return Trial("not installed", message=text)
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return Trial("out of memory", message="an allocation was refused")
    return Trial("failed", message=text)
