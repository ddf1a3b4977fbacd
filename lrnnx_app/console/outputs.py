"""Keeps a training alive if its output fails: a closed stream, a pipe without a reader, a closed terminal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from lrnnx_app.console.terminal import Nowhere


class Lasting:
    """A text stream that drops all text after its first failure, instead of raising an error.

    Args:
        stream: sys.stdout or sys.stderr; None if it was closed when the process started.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream or Nowhere()

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError) as error:
            self._forget(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._forget(error)

    def _forget(self, error: Exception) -> None:
        if isinstance(error, ValueError) and not self.stream.closed:
            raise error  # not a failure of the stream: a letter that it cannot encode
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self.stream.fileno())  # later flushes then work, also those of C++ code
        except (OSError, ValueError):
            self.stream = Nowhere()
        finally:
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def lasting(*names: str) -> Iterator[None]:
    """While entered, sys.stdout and sys.stderr, or those named, are `Lasting`, and SIGHUP is ignored."""
    before = {name: getattr(sys, name) for name in names or ("stdout", "stderr")}
    hang_up = None
    if not names and hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    made = {name: Lasting(stream) for name, stream in before.items() if not isinstance(stream, Lasting)}
    try:
        for name, stream in made.items():
            setattr(sys, name, stream)
        yield
    finally:
        for name, stream in made.items():
            stream.flush()
            setattr(sys, name, before[name])
            if isinstance(stream.stream, Nowhere) and stream.stream is not before[name]:
                stream.stream.close()
        if hang_up is not None:
            signal.signal(signal.SIGHUP, hang_up)
