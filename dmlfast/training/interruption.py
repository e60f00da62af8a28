"""Stopping a run between two steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT into a question that a loop can ask; the second acts as before.

    From the first SIGINT on, and on leaving, the handler that was there before is back. Nothing is
    changed, and the answer stays no, where that handler is to stay: where SIGINT is ignored, as in
    a job that a shell started in the background; where the handler was not installed from Python,
    which could not bring it back; and in any thread but the main one, which cannot set handlers.

    Yields:
        A function that says whether a SIGINT has come.
    """
    came = False
    previous = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, previous)

    installed = previous is not None and previous is not signal.SIG_IGN and _install(handle)
    try:
        yield lambda: came
    finally:
        if installed:
            signal.signal(signal.SIGINT, previous)


def _install(handler: Callable[[int, FrameType | None], None]) -> bool:
    """Set the handler of SIGINT; False where this thread cannot."""
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:
        return False
    return True
