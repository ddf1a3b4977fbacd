"""The processes of a job: which one speaks, and how all of them end when one is gone.

What started them sees to that under torchrun and SLURM. Of those that Lightning starts, the first one watches
the others and they watch it, since a process that waits for a lost one may wait for long.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lrnnx_app.errors import Interrupted
from lrnnx_app.machine import rank

TICK = 0.2  # seconds between looks at the others
GRACE = 3.0  # seconds in which a process may end by itself, for the reason for which another did
BROKEN = ("connection", "gloo", "nccl")  # one of them is in the message of an exchange that failed


class PeerWatch:
    """While entered, the loss of one process ends the others, with one line by one of them and exit code 1.

    Args:
        folder: of the run, to say how to go on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._parent = os.getppid()
        self._many = False
        self._left = threading.Event()
        self._ending = threading.Lock()

    def watch(self, trainer: Any, module: Any, stage: str) -> None:
        """A `Callback.setup`, which Lightning calls when all processes have been started."""
        if stage != "fit" or trainer.world_size == 1:
            return
        self._many = True
        if procs := getattr(trainer.strategy.launcher, "procs", None):
            self._children = list(procs)
            procs.clear()  # Lightning would kill this process before it can say why
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._many and not isinstance(error, Interrupted):
            if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in BROKEN):
                self._end(self._lost(GRACE) or "another process of this job ended")
            if rank():
                self._lost(GRACE)  # the first process has the same to say, or ends this one
            self._kill()
        self._left.set()

    def _watch(self) -> None:
        while not self._left.wait(TICK):
            if (lost := self._lost()) and not self._left.wait(GRACE if self._children else 0):
                self._end(lost)

    def _lost(self, within: float = 0.0) -> str:
        """What happened to a process that is gone, or goes within so many seconds; "" if none does."""
        until = time.monotonic() + within
        while True:
            if os.getppid() != self._parent:
                return "the first process of this job is gone"
            for number, child in enumerate(self._children, 1):
                if code := child.poll():
                    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
                    return f"process {number} of this job ended {how}"
            if time.monotonic() >= until:
                return ""
            time.sleep(TICK)

    def _end(self, lost: str) -> None:
        with self._ending:
            self._kill()
            if rank() == (os.getppid() != self._parent):  # the first that is left
                line = f"error: {lost}, and so do the others; go on with: lrnnx train --resume {self.folder}"
                print(f"\n{line}", file=sys.stderr, flush=True)
            os._exit(1)

    def _kill(self) -> None:
        for child in self._children:
            with contextlib.suppress(OSError):
                child.kill()
