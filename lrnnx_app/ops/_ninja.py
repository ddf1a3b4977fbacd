"""Runs ninja over compilers, shows how far it is, and ends it with all compilers if this process ends."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# SIGTERM comes when the process that started this one ends; ninja hands it on to its compilers.
LAUNCH = """import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
STATUS = re.compile(r"\[\d+/\d+\] ")  # edges done of all
Edge = tuple[Path, Sequence[Path], Sequence[str]]  # a file, its parts, and a command: `{}` is the file there
BLINK = 0.2  # seconds between two looks at how far a build is


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

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While entered, the line is kept up to date."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(BLINK):
                self.show()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

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


def run(edges: Iterable[Edge], scratch: Path, progress: Progress) -> str:
    """Make files side by side, and go on where one fails; returns what failed commands said.

    Args:
        edges: what to make.
        scratch: an empty folder, also for temporary files.

    Raises:
        FileNotFoundError: there is no ninja.
    """
    lines = ["rule make", "  command = $run"]
    for path, parts, command in edges:
        # what an ended command or a power cut has left does not bear the name of the file
        new = f"{path}.new"
        words = shlex.join(new if word == "{}" else word for word in command)
        steps = (words, shlex.join(["sync", new]), shlex.join(["mv", new, str(path)]))
        lines.append(f"build {_path(path)}: make {' '.join(map(_path, parts))}")
        lines.append(f"  run = {' && '.join(steps)}".replace("$", "$$"))
    (scratch / "build.ninja").write_text("\n".join(lines) + "\n")
    command = [ninja(), "-C", str(scratch), "-k", "0", "-j", str(processors())]
    said, failed = [], False
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command],
        env={**os.environ, "TMPDIR": str(scratch), "NINJA_STATUS": "[%f/%t] "},
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            with progress.shown():
                for line in process.stdout or ():
                    if STATUS.match(line):
                        failed = False
                        progress.done()
                    failed = failed or line.startswith("FAILED: ")
                    if failed:
                        said.append(line)
        except BaseException:
            process.terminate()
            raise
    return "".join(said)


def _path(path: Path) -> str:
    """A path as ninja reads it."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja() -> str:
    """Path of ninja: in this Python's folder of scripts, which may not be on PATH, or on PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    beside = Path(sysconfig.get_path("scripts"), "ninja")
    found = str(beside) if beside.exists() else shutil.which("ninja")
    if not found:
        raise FileNotFoundError("no ninja found; pip install ninja")
    return found


def processors() -> int:
    """How many processors this process may use, also in a container with a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control groups, or a quota of "max"
        return count
