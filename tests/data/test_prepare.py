"""Clips for a denoiser, cut out of small packages that are made here."""

import csv
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lrnnx_app.data import cutting, prepare
from lrnnx_app.data.prepare import Source, denoise, sources
from lrnnx_app.errors import DataError, UserError

RATE = 22050
WORDS = "License: CC0-1.0\n"


def voice(seconds: float, hiss: float = 0.0) -> np.ndarray:
    """Words of a second: a tone of .7 s, then a pause."""
    t = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * 220 * t) * (t % 1 < 0.7) + hiss * np.random.default_rng(0).normal(
        size=len(t)
    )


def sound(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def deb(file: Path, contents: dict[str, bytes]) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    parts = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())]
    text = b"!<arch>\n"
    for name, content in parts:
        text += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        text += b"\n" * (len(content) % 2)
    file.write_bytes(text)


def line(package: str, path: str, role: str = "speech", but: str = "", language: str = "it") -> Source:
    return Source("train", role, package, path, but, language, "anna" if role == "speech" else "", 60)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    said = {f"usr/share/talk/{n}/{k}.wav": sound(voice(3)) for n in ("de", "fr") for k in range(3)}
    deb(folder / "talk_1%3a2.0-1_all.deb", {**said, "usr/share/doc/talk/copyright": WORDS.encode()})
    with zipfile.ZipFile(folder / "some_hum-3.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("hum/low.wav", sound(voice(40)))
        wheel.writestr("some_hum-3.1.dist-info/METADATA", "License-Expression: MIT\n")
    return folder


MANIFEST = {
    "talk": [line("talk", "usr/share/talk/{language}/*", but="/fr/", language="")],
    "some-hum": [line("some-hum", "hum/*", "noise")],
    "gone": [line("gone", "*")],
}


def test_packages_become_clips_with_their_licences(packages: Path, tmp_path: Path, capsys) -> None:
    rows = denoise(tmp_path / "out", MANIFEST, packages)
    assert "left out, not to be had here: gone" in capsys.readouterr().err
    with (tmp_path / "out" / "index.csv").open() as file:
        assert rows == list(csv.DictReader(file))
    assert {
        (r["role"], r["package"], r["version"], r["licence"], r["language"], r["speaker"]) for r in rows
    } == {
        ("speech", "talk", "1:2.0", "CC0-1.0", "de", "anna"),
        ("noise", "some-hum", "3.1", "MIT", "", ""),
    }
    assert (tmp_path / "out" / "licences" / "talk.txt").read_text() == WORDS
    assert "| some-hum | 3.1 | MIT |" in (tmp_path / "out" / "LICENCES.md").read_text()
    for row in rows:
        samples, rate = soundfile.read(tmp_path / "out" / row["file"])
        assert rate == 16000
        assert len(samples) / rate == pytest.approx(float(row["seconds"]), abs=0.01)
        assert cutting.active(samples) == pytest.approx(cutting.LEVEL, abs=0.5)  # Opus is not exact
        assert row["file"].startswith(("speech/de-anna/talk-", "noise/sounds/some-hum/some-hum-"))
    assert [float(r["seconds"]) for r in rows if r["role"] == "noise"] == [30]


def test_it_goes_on_with_the_packages_that_are_left(packages: Path, tmp_path: Path, monkeypatch) -> None:
    read, seen = cutting.read, []

    def stopped(path: Path, role: str) -> np.ndarray:
        seen.append(role)
        if seen.count("noise") == 1:
            raise KeyboardInterrupt
        return read(path, role)

    monkeypatch.setattr(cutting, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        denoise(tmp_path / "out", MANIFEST, packages)
    before = (tmp_path / "out" / "index.csv").read_text()
    assert "talk" in before
    seen[:] = ["noise"]
    rows = denoise(tmp_path / "out", MANIFEST, packages)
    assert seen[1:] == ["noise"]
    assert {row["package"] for row in rows} == {"talk", "some-hum"}
    assert (tmp_path / "out" / "index.csv").read_text().startswith(before)


def test_speech_with_noise_or_clipped_is_left_out(tmp_path: Path) -> None:
    said = {"good": voice(8), "noisy": voice(8, hiss=0.02), "clipped": np.clip(8 * voice(8), -1, 1)}
    for name, samples in said.items():
        (tmp_path / f"{name}.wav").write_bytes(sound(samples))
    assert [cutting.clean(cutting.read(tmp_path / f"{name}.wav", "speech")) for name in said] == [
        True,
        False,
        False,
    ]


def test_a_telephone_is_no_speech_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sound(voice(2), 8000))
    with pytest.raises(DataError, match=r"a\.wav: sampled too slowly"):
        cutting.read(tmp_path / "a.wav", "speech")


def queen(files: dict[str, bytes]) -> bytes:
    table, content = b"", b""
    start = 15 + 21 * len(files)
    for name, held in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, start + len(content), len(held))
        content += held
    return b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(files)) + table + content


def test_speech_inside_of_a_games_file_is_found(tmp_path: Path) -> None:
    files = {"020001P1.SB": sound(voice(3), 11025), "JOE1.SB": sound(voice(4)), "A.PCX": b"a picture"}
    deb(tmp_path / "game_1-1_all.deb", {"usr/share/game/queen.1c": queen(files)})
    manifest = {"game": [line("game", "usr/share/game/queen.1c/*.mp3", but="/JOE")]}
    rows = denoise(tmp_path / "out", manifest, packages=tmp_path)
    (clip,) = (tmp_path / "out" / "speech").rglob("*.ogg")
    assert [row["file"] for row in rows] == [str(clip.relative_to(tmp_path / "out"))]
    assert 5 < soundfile.info(str(clip)).duration < 6  # twice as slow by its head; the last pause is cut


@pytest.mark.parametrize(
    "content", [b"RIFF", b"QTBL", queen({"A.SB": b""})[:20]], ids=["other", "head", "cut"]
)
def test_a_damaged_game_is_named(content: bytes, tmp_path: Path) -> None:
    deb(tmp_path / "game_1-1_all.deb", {"usr/share/game/queen.1c": content})
    with pytest.raises(DataError, match=r"game_1-1_all\.deb: not readable as a package \(.*; fetch it again"):
        denoise(tmp_path / "out", {"game": [line("game", "usr/share/game/queen.1c/*.mp3")]}, tmp_path)


def test_own_folders_alone_and_the_set_that_judges(tmp_path: Path, lrnnx) -> None:
    for place in ("mine/eva/a.wav", "mine/eva/b.wav", "mine/udo/c.wav"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(sound(voice(7)))
    out = tmp_path / "out"
    told = lrnnx("data", "prepare", "denoise", out, "--own", "--judge", "--speech", tmp_path / "mine").done()
    assert sorted(path.parent.name for path in out.rglob("*.flac")) == ["und-eva", "und-eva", "und-udo"]
    assert "speech: 3 clips" in told.out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("digits", "out"), "digits: unknown recipe"),
        (("denoise", "out"), "no apt-get here"),
        (("denoise", "out", "--packages", "gone"), "no such folder"),
        (("denoise", "out", "--own"), "no clip was written"),
        (("denoise", "out", "--own", "--noise", "gone"), "no such folder"),
    ],
)
def test_mistakes_are_one_line(words, error: str, lrnnx, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    told = lrnnx("data", "prepare", *words)
    assert told.code == 2
    assert error in told.error.splitlines()[-1]


def test_a_damaged_package_is_named(packages: Path, tmp_path: Path) -> None:
    whole = (packages / "talk_1%3a2.0-1_all.deb").read_bytes()
    (packages / "talk_1%3a2.0-1_all.deb").write_bytes(whole[:-900])
    with pytest.raises(DataError, match=r"talk_1.*not readable as a package"):
        denoise(tmp_path / "out", MANIFEST, packages)


def test_training_and_judging_share_no_package_and_no_forbidden_language() -> None:
    train, judge = sources(False), sources(True)
    assert not train.keys() & judge.keys()
    for line in (line for lines in train.values() for line in lines):
        assert line.role in prepare.PLACES
        assert line.language not in ("fr", "es")
        if "{language}" in line.path:
            assert "es|fr" in line.but


def test_synthesizers_speak_if_they_are_installed(tmp_path: Path, monkeypatch, capsys) -> None:
    tool = tmp_path / "bin" / "robot"
    tool.parent.mkdir()
    (tmp_path / "said.wav").write_bytes(sound(voice(4)))
    tool.write_text(f'#!/bin/sh\n/bin/cp {tmp_path / "said.wav"} "$2"\n')
    tool.chmod(0o755)
    robots = {
        "robot": [Source("train", "speech", "robot", "robot TEXT FILE", "", "sv", "robot", 60)],
        "none": [Source("train", "speech", "none", "none TEXT FILE", "", "sv", "none", 60)],
    }
    monkeypatch.setenv("PATH", str(tool.parent))
    rows = denoise(tmp_path / "out", robots, tmp_path)
    assert {(row["licence"], row["language"]) for row in rows} == {("synthetic", "sv")}
    assert "none (not installed)" in capsys.readouterr().err


def test_no_apt_get_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--packages FOLDER"):
        denoise(tmp_path / "out", MANIFEST)
