"""No signal to stop is lost, wherever it comes."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from serve_app.stop_signals import StopSignals


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals = StopSignals()
    signals.install()
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


class SignalledWhileFinalized:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(100))  # some bytecode, between which the handler runs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_a_start_and_is_noted_afterwards(
    signals: StopSignals, number: int
) -> None:
    with pytest.raises(KeyboardInterrupt), signals.interrupting():
        os.kill(os.getpid(), number)
    signals.asked = False
    os.kill(os.getpid(), number)
    assert signals.asked


def test_a_signal_within_a_finalizer_which_swallows_exceptions_is_not_lost(
    signals: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    with signals.interrupting():
        SignalledWhileFinalized()
    assert len(swallowed) == 1
    assert signals.asked


def test_once_the_end_has_begun_signals_are_ignored(signals: StopSignals) -> None:
    signals.ignore()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert signals.asked
