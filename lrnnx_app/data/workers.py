"""Processes that prepare batches (workers). They ignore signals, and end when the training process ends."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lrnnx_app.console.interrupts import SIGNALS
from lrnnx_app.errors import DataError, UserError

PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux's prctl
FILES, FILES_OF_WORKER = 96, 16  # open files of a training process, and more for each worker
GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) .*")  # as torch says it
CAUGHT = re.compile(r"Caught \w+ in DataLoader worker process .*\n\w[\w.]*: (.*)\Z", re.DOTALL)


class Loader(DataLoader):
    """A DataLoader whose workers ignore SIGTERM and Ctrl-C, which are sent to all processes of a group."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, worker_init_fn=partial(_begin, os.getpid()), **options)

    def __iter__(self) -> Any:
        if not self.num_workers or not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the new processes inherit it
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int, worker: int) -> None:
    """Called in a new worker: ignore these signals, and be killed when the parent ends for any reason."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux" and os.getppid() == parent:  # and not a server that forks
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def check_files(workers: int) -> None:
    """Check that the system allows enough open files; torch needs one for each tensor of a worker's batch.

    Raises:
        DataError: it allows too few, and torch would wait for ever.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + FILES_OF_WORKER * workers
    if workers and resource.RLIM_INFINITY != most < needed:
        raise DataError(
            f"data.workers: a process may open {most} files here; expected {needed} for {workers} workers: "
            f"ulimit -n {needed}, or data.workers=0"
        )


@contextmanager
def told(run: Path | None = None) -> Iterator[None]:
    """Turns a failure in a worker into an error of one line.

    Raises:
        DataError: a worker was killed; says how to resume `run`.
        UserError: a worker raised it; the worker's traceback is dropped.
    """
    try:
        yield
    except UserError as error:
        if found := CAUGHT.match(str(error)):
            raise type(error)(found[1]) from error
        raise
    except RuntimeError as error:
        if not (lost := gone(error)):
            raise
        onwards = f", then --resume {run}" if run else ""
        raise DataError(
            f"data.workers: {lost} The system kills processes where memory runs out: try fewer data.workers "
            f"or a smaller data.batch_size{onwards}"
        ) from error


def gone(error: BaseException | None) -> str:
    """torch's message about a worker that has ended, in this error or in one that caused it; "" if none."""
    while error is not None:
        if found := GONE.match(str(error)):
            return f"{found[0].strip().rstrip('.')}."
        error = error.__cause__ or error.__context__
    return ""
