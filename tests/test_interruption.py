"""Tests of dmlfast.training.interruption."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from dmlfast.training import interruption


@pytest.fixture(autouse=True)
def _own_handler() -> Iterator[None]:
    """The handler of the test session comes back, whatever a test sets or leaves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_sigint_is_only_remembered() -> None:
    with interruption() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()


def test_the_second_sigint_goes_to_the_handler_from_before() -> None:
    came: list[int] = []

    def mine(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    signal.signal(signal.SIGINT, mine)
    with interruption():
        signal.raise_signal(signal.SIGINT)
        assert came == []
        signal.raise_signal(signal.SIGINT)
    assert came == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is mine


def test_the_second_sigint_interrupts_python_at_once() -> None:
    with interruption():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_from_before_comes_back() -> None:
    with interruption():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_sigint_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruption() as should_stop:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)
        assert not should_stop()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_handler_that_python_does_not_know_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(signal, "getsignal", lambda _: None)
        with interruption() as should_stop:
            assert not should_stop()
            patched.undo()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_never_stops_and_changes_nothing() -> None:
    answers: list[object] = []

    def ask() -> None:
        with interruption() as should_stop:
            answers.extend([should_stop(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False, signal.default_int_handler]
