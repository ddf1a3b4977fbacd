"""The cache: what is built stays whole, whatever ends its making."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lrnnx_app import cache
from lrnnx_app.errors import DataError

SLOW = """
import sys, time
from pathlib import Path
from lrnnx_app import cache
cache.root = lambda: Path(sys.argv[1])
def make(part):
    (part / "first").write_text("half")
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    (part / "second").write_text("whole")
print(cache.folder("test", "facts", make), flush=True)
"""


def build(root: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(root), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_build_leaves_nothing_half_made(tmp_path: Path) -> None:
    process = build(tmp_path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not [p for p in (tmp_path / "test").iterdir() if p.is_dir() and ".part." not in p.name]
    both = [build(tmp_path, 0.3) for _ in range(2)]  # one builds, the other waits for it
    said = [process.communicate()[0] for process in both]
    assert sum(text.count("begun") for text in said) == 1
    (made,) = [p for p in (tmp_path / "test").iterdir() if p.is_dir()]
    assert {p.name: p.read_text() for p in made.iterdir()} == {"first": "half", "second": "whole"}
    assert all(text.endswith(f"{made}\n") for text in said)


def test_a_failed_build_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrnnx_app.cache.root", lambda: tmp_path)

    def fail(part: Path) -> None:
        (part / "x").write_text("")
        raise DataError("bad file")

    with pytest.raises(DataError):
        cache.folder("test", 1, fail)
    assert not [p for p in (tmp_path / "test").iterdir() if p.is_dir()]
    made = cache.folder("test", 1, lambda part: (part / "x").write_text("y") and None)
    assert (made / "x").read_text() == "y"
