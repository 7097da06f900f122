"""Ctrl-C and SIGTERM ask the run to stop after the step in hand."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While active, remembers the first signal; a second one of Ctrl-C kills as usual.

    Truth value: whether a signal has come.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.received is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interruptions(worker: int) -> None:
    """For processes that read data: Ctrl-C reaches them too, and they must finish the batch."""
    for number in Interruption.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
