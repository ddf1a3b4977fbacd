"""What a shell is told on Tab, at once: commands, options, names; nothing heavy is imported for it."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "matplotlib", "numpy")


def completed(monkeypatch: pytest.MonkeyPatch, lrnnx, words: str) -> list[str]:
    for key, value in {
        "_LRNNX_COMPLETE": "complete_bash",
        "COMP_WORDS": f"lrnnx {words}",
        "COMP_CWORD": str(len(f"{words}.".split())),
    }.items():
        monkeypatch.setenv(key, value)
    return lrnnx().out.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tr", ["train"]),
        ("bench str", ["streaming"]),
        ("train denoise_l", ["denoise_lru"]),
        ("train digits_lru --dr", ["--dry-run"]),
        ("recipes denoise_l", ["denoise_lru"]),
        ("recipes digits_lru --exp", ["--explain"]),
        ("data aud", ["audio"]),
        ("data digits_lr", ["digits_lru"]),
    ],
)
def test_words_are_completed(monkeypatch: pytest.MonkeyPatch, lrnnx, words: str, expected: list[str]) -> None:
    assert completed(monkeypatch, lrnnx, words) == expected


def test_completion_imports_nothing_heavy_and_takes_little_time() -> None:
    code = (
        "import sys, time\n"
        "from lrnnx_app import cli\n"
        "try:\n    cli.main()\n"
        f"finally:\n    print(time.process_time(), *[m for m in {HEAVY} if m in sys.modules])"
    )
    told = {"_LRNNX_COMPLETE": "complete_bash", "COMP_WORDS": "lrnnx train denoise_l", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=os.environ | told
    )
    name, seconds = done.stdout.split()
    assert name == "denoise_lru", done.stderr
    assert float(seconds) < 1  # half of it on a common machine


def test_the_script_of_a_shell_calls_the_command(monkeypatch: pytest.MonkeyPatch, lrnnx) -> None:
    monkeypatch.setenv("_LRNNX_COMPLETE", "source_bash")
    assert "_LRNNX_COMPLETE=complete_bash" in lrnnx().out
