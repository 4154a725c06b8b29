"""Requests to stop, by signals."""

import signal

import pytest

from reference_model.runtime.signals import Stopped, handle_signals, raise_if_stop_requested, stop_requested


def test_the_first_signal_is_noted_and_the_second_acts() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        for _ in range(2):  # a command may be called twice in a process
            with handle_signals():
                raise_if_stop_requested()
                assert not stop_requested()
                signal.raise_signal(signal.SIGTERM)
                assert stop_requested()
                with pytest.raises(Stopped):
                    raise_if_stop_requested()
                assert not seen
                signal.raise_signal(signal.SIGTERM)
                assert seen == [signal.SIGTERM]
            signal.raise_signal(signal.SIGTERM)
            assert len(seen) == 2
            seen.clear()
    finally:
        signal.signal(signal.SIGTERM, before)
