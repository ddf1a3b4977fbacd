"""SIGTERM and Ctrl-C: the first one lets training write a checkpoint and exit, the second exits at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from lrnnx_app import machine

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME = 0.5  # seconds; signals this close are one: a process group and a launcher may both pass it on


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """While entered, SIGTERM raises KeyboardInterrupt, as Ctrl-C does. Works in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupts:
    """While entered, the first signal is noted and a second one ends the process.

    The processes of a job agree whether to stop in `lrnnx_app.train.nonfinite`, by a reduction that each step
    needs anyway. Outside the main thread Python allows no handlers, so signals act as before.

    Args:
        hand_on: called with the number of each signal; for a process that waits for another one that trains.
    """

    def __init__(self, hand_on: Callable[[int], None] | None = None) -> None:
        self.asked = False  # a signal asked this process to stop
        self.agreed = False  # all processes of the job will stop after the same step
        self._hand_on = hand_on
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def install(self) -> None:
        """Install the handlers, also in place of Lightning's.

        Lightning's own handler ends a training without a checkpoint, and exchanges messages with other
        processes in the middle of a step.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._since < SAME:
            return
        if self._hand_on is not None:
            self._hand_on(number)
        if self.asked:
            os._exit(128 + number)
        self.asked, self._since = True, now
        if machine.rank() or self._hand_on is not None:
            return
        name = signal.Signals(number).name
        text = f"\n{name}: stopping after this step with a checkpoint; once more to exit at once\n"
        with contextlib.suppress(OSError):  # nobody reads this output any more
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
