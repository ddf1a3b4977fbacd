"""SIGTERM and Ctrl-C: training writes a checkpoint after the step and exits; a second one exits at once."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

from lightning import Trainer

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """While entered, the first signal is noted and the second one ends the process.

    Outside the main thread, where Python takes no handlers, signals do what they did before.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.hold()
        return self

    def hold(self) -> None:
        """Take the signals, also from Lightning, whose own handler ends a fit without a checkpoint."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def agreed(self, trainer: Trainer) -> bool:
        """Whether any process of the job was asked; every process gets the same answer."""
        if trainer.world_size == 1:
            return self.asked
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        name = signal.Signals(number).name
        text = f"\n{name}: stopping after this step with a checkpoint; once more to exit at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
