"""Stopping a run between two steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT into a question that a loop can ask; the second acts as always.

    On leaving, the handler that was there before is back. Only the main thread can set a handler.

    Yields:
        A function that says whether a SIGINT has come.

    Raises:
        ValueError: if this is not the main thread.
    """
    came = False
    previous = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, previous)
