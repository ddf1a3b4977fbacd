"""The processes of a job: if one of them ends, the others end too, and one of them says why.

A process that exchanges gradients with a dead one would wait for a long time. torchrun and SLURM end the
others themselves. Where Lightning starts the processes, the first process watches the others, and they watch
it.
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

TICK = 0.2  # seconds between two checks whether the others still run
GRACE = 3.0  # seconds in which a process may end by itself, with its own message for the same cause
BROKEN = ("connection", "gloo", "nccl")  # the message of a failed exchange holds one of these words


class PeerWatch:
    """While entered, the end of one process ends all others with exit code 1. One of them prints one line.

    Args:
        folder: the run folder, for the line that says how to resume.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._parent = os.getppid()
        self._many = False
        self._left = threading.Event()
        self._ending = threading.Lock()

    def watch(self, trainer: Any, module: Any, stage: str) -> None:
        """Start watching; Lightning calls this as `Callback.setup`, after it has started all processes."""
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
                self._lost(GRACE)  # time for the first process to print the same error, or to end this one
            self._kill()
        self._left.set()

    def _watch(self) -> None:
        while not self._left.wait(TICK):
            if (lost := self._lost()) and not self._left.wait(GRACE if self._children else 0):
                self._end(lost)

    def _lost(self, within: float = 0.0) -> str:
        """What happened to a process that has ended, or ends within `within` seconds; "" if none does."""
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
            if rank() == (os.getppid() != self._parent):  # rank 0 prints; if it is gone, rank 1
                line = f"error: {lost}, and so do the others; go on with: lrnnx train --resume {self.folder}"
                print(f"\n{line}", file=sys.stderr, flush=True)
            os._exit(1)

    def _kill(self) -> None:
        for child in self._children:
            with contextlib.suppress(OSError):
                child.kill()
