"""The cache: what is built stays whole, whatever ends its making."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lrnnx_app.disk import cache
from lrnnx_app.errors import CacheError, DataError
from tests.helpers import refused

SLOW = """
import sys, time
from pathlib import Path
from lrnnx_app.disk import cache
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
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not [p for p in (tmp_path / "test").iterdir() if p.is_dir() and not p.name.startswith(cache.ROOM)]
    both = [build(tmp_path, 0.3) for _ in range(2)]  # one builds, the other waits for it
    said = [process.communicate()[0] for process in both]
    assert sum(text.count("begun") for text in said) == 1
    (made,) = [p for p in (tmp_path / "test").iterdir() if p.is_dir()]
    assert {p.name: p.read_text() for p in made.iterdir() if p.name != cache.SEAL} == {
        "first": "half",
        "second": "whole",
    }
    assert all(text.endswith(f"{made}\n") for text in said)


def test_a_failed_build_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrnnx_app.disk.cache.root", lambda: tmp_path)

    def fail(part: Path) -> None:
        (part / "x").write_text("")
        raise DataError("bad file")

    with pytest.raises(DataError):
        cache.folder("test", 1, fail)
    assert not [p for p in (tmp_path / "test").iterdir() if p.is_dir()]
    made = cache.folder("test", 1, lambda part: (part / "x").write_text("y") and None)
    assert (made / "x").read_text() == "y"


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LRNNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(content: str = "whole") -> Path:
    def make(part: Path) -> None:
        (part / "x").write_text(content)
        (part / "y").write_text("other")

    return cache.folder("test", 1, make)


def damage(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x", b""),
        ("x", b"who"),
        ("x", b"whale"),
        (cache.SEAL, b""),
        (cache.SEAL, b"{"),
        (cache.SEAL, b"[" * 99999),
    ],
)
def test_what_does_not_fit_its_seal_is_made_again(top: Path, name: str, content: bytes) -> None:
    home = made()
    damage(home / name, content)
    assert (made("again") / "x").read_text() == "again"
    assert (made("unused") / "x").read_text() == "again"


def test_a_file_too_few_or_too_many_is_made_again(top: Path) -> None:
    home = made()
    (home / "y").unlink()
    assert (made() / "y").read_text() == "other"
    (home / "z").write_text("planted")
    assert {path.name for path in made().iterdir()} == {"x", "y", cache.SEAL}


def test_nobody_else_may_write_to_what_is_made(top: Path) -> None:
    before = os.umask(0)
    try:
        home = made()
    finally:
        os.umask(before)
    for place in (top, top / "test", home):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    for path in home.iterdir():
        assert not path.stat().st_mode & 0o022
    assert made("unused") == home


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("place", [".", "test", "home", "file"])
def test_what_others_may_write_to_is_not_read(top: Path, place: str, mode: int) -> None:
    home = made()
    path = {"home": home, "file": home / "x"}.get(place, top / place)
    path.chmod(mode)
    with refused(CacheError, str(path.resolve()), match=r"may be written by others.*chmod go-w"):
        made()


@pytest.mark.parametrize("place", [".", "test", "home", "file"])
def test_what_belongs_to_others_is_not_read(top: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    home = made()
    path = {"home": home, "file": home / "x"}.get(place, top / place).resolve()
    real = Path.lstat

    def lstat(self: Path) -> Any:
        facts = real(self)
        return SimpleNamespace(st_mode=facts.st_mode, st_uid=4321) if self == path else facts

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(CacheError, match="belongs to user 4321"):
        made()


def test_a_link_that_is_ones_own_leads_to_the_cache(top: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    top.symlink_to(tmp_path / "elsewhere")
    assert made().is_relative_to(tmp_path / "elsewhere")


def test_remains_of_killed_builds_are_swept_up_and_live_ones_left(top: Path) -> None:
    stale = top / "test" / f"{cache.ROOM}stale"
    stale.mkdir(parents=True, mode=0o700)
    (stale / "objects").mkdir()

    def make(part: Path) -> None:
        cache._sweep(part.parents[1])
        (part / "x").write_text("alive")

    top.chmod(0o700)
    (top / "test").chmod(0o700)
    assert (cache.folder("test", 2, make) / "x").read_text() == "alive"
    assert not list((top / "test").glob(f"{cache.ROOM}*"))


def test_a_user_without_a_home_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LRNNX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["unknown"])
    assert cache.root() == tmp_path / f"lrnnx-{os.geteuid()}"
    assert (made() / "x").read_text() == "whole"
    assert stat.S_IMODE(cache.root().stat().st_mode) == 0o700
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.root() == tmp_path / "home" / ".cache" / "lrnnx"
    monkeypatch.setattr(os, "access", lambda *_: False)  # a home that may not be written
    assert cache.root() == tmp_path / f"lrnnx-{os.geteuid()}"


def test_a_room_that_is_swept_before_it_is_locked_is_replaced(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, swept = tempfile.mkdtemp, []

    def begin_and_lose(**words: Any) -> str:
        room = begin(**words)
        if not swept:
            swept.append(room)
            os.rmdir(room)
        return room

    monkeypatch.setattr(tempfile, "mkdtemp", begin_and_lose)
    assert (made() / "x").read_text() == "whole"
    assert not os.path.exists(swept[0])
