"""Runs compilers side by side, shows how far they are, and ends them all if this process ends."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

# SIGTERM comes when the process that started this one ends; it ends the compiler and all that it started.
LAUNCH = """import ctypes, os, signal, subprocess, sys
if os.name == "posix":
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
sys.exit(subprocess.call(sys.argv[2:]))
"""
BLINK = 0.2  # seconds between two looks at how far a build is
PATIENCE = 2  # seconds for threads to clean up in; what they leave, the next build removes


class CommandError(Exception):
    """A command failed or was ended; the message is what it said."""


class Progress:
    """How many files are made of how many. On a terminal, a line of it is rewritten.

    Elsewhere a line tells of the start, and one of the end. Nothing is said if nothing is to be made.
    """

    def __init__(self, what: str) -> None:
        self.what = what  # such as "CPU kernels of linear_scan"
        self._started = self._last = 0.0  # times of the start, and of the last file made
        self._all = self._made = self._found = 0
        self._shown = ""
        self._lock = threading.Lock()

    def expect(self, files: int) -> None:
        """So many more files are to be made."""
        with self._lock:
            self._started = self._started or time.monotonic()
            self._all += files

    def done(self, found: bool = False) -> None:
        """A file is made, or `found` where an earlier start had left it."""
        with self._lock:
            self._found += found
            if not found:
                self._made += 1
                self._last = time.monotonic()

    def line(self) -> str:
        """Files done of all, and about how many seconds are left."""
        with self._lock:
            done, about = self._made + self._found, ""
            if self._made:
                pace = (self._last - self._started) / self._made
                left = self._last + pace * (self._all - done) - time.monotonic()
                about = f", about {max(left, 0):.0f} s left"
            return f"lrnnx: building {self.what}: {done} of {self._all} files{about}"

    def show(self) -> None:
        if self._all and sys.stderr.isatty():
            self._rewrite(self.line())
        elif self._all and not self._shown:
            self._shown = f"lrnnx: building {self.what}, once for this machine ..."
            print(self._shown, file=sys.stderr, flush=True)

    def finish(self, how: str) -> None:
        """Say how a build ended, such as "done"."""
        if self._all:
            self.show()
            said = f"lrnnx: {self.what}: {how} after {time.monotonic() - self._started:.0f} s"
            if sys.stderr.isatty():
                self._rewrite(said)
            print("" if sys.stderr.isatty() else said, file=sys.stderr, flush=True)

    def _rewrite(self, line: str) -> None:
        print(f"\r{line.ljust(len(self._shown))}", end="", file=sys.stderr, flush=True)
        self._shown = line


class Workers:
    """A context in which compilers run, one for each processor."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(processors())
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self.ended = False

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            self.end()
        self.pool.shutdown(cancel_futures=True)

    def run(self, command: Sequence[str], scratch: Path) -> None:
        """Run a command, which puts its temporary files into a folder `scratch`, made here and removed.

        Raises:
            CommandError: it failed, or was ended.
        """
        scratch.mkdir()
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command]
        with self._lock:
            if self.ended:
                raise CommandError("ended")
            process = subprocess.Popen(
                launch,
                env={**os.environ, "TMPDIR": str(scratch)},
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            self._running.add(process)
        said, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
        if process.returncode:
            raise CommandError(said)
        shutil.rmtree(scratch)

    def watch(self, threads: Sequence[threading.Thread], progress: Progress) -> None:
        """Run threads to their end, and show how far they are. If this is interrupted, end all commands."""
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(BLINK)
                    progress.show()
        except BaseException:
            self.end()
            until = time.monotonic() + PATIENCE
            for thread in threads:
                thread.join(max(0, until - time.monotonic()))
            progress.finish("stopped, and goes on from here at the next start,")
            raise

    def end(self) -> None:
        """End what runs, and start nothing more."""
        with self._lock:
            self.ended = True
            for process in self._running:
                process.terminate()


def processors() -> int:
    """How many processors this process may use, also in a container with a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control groups, or a quota of "max"
        return count
