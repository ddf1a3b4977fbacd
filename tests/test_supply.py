"""What comes with the package, and what it asks the network for: nothing."""

import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.helpers import DENOISE, ROOT


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach the network, which fails."""
    asked: list[object] = []

    def refuse(*words: object, **_: object) -> None:
        asked.append(words)
        raise OSError("the network was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    return asked


def test_nothing_is_fetched(lrnnx, offline: list[object], tmp_path: Path) -> None:
    run, wave = tmp_path / "run", tmp_path / "in.wav"
    soundfile.write(wave, np.zeros(2000), 16000)
    for words in (
        ("recipes",),
        ("train", *DENOISE, "-o", run),
        ("evaluate", run),
        ("infer", run, wave, "-o", tmp_path / "out.wav"),
        ("export", run, "-o", tmp_path / "run.safetensors"),
        ("export", run, "-o", tmp_path / "run.onnx"),
        ("export", run, "--format", "huggingface", "-o", tmp_path / "hub"),
    ):
        lrnnx(*words).done()
    assert offline == []


def test_every_dependency_says_what_for() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    wanted = [line for line in lines if line.startswith('  "') and (">=" in line)]
    assert len(wanted) > 10
    assert [line for line in wanted if "#" not in line] == []
    assert [line for line in wanted if "torch" in line and "<" in line.partition("#")[0]] == []


def test_the_wheel_holds_licences_recipes_guides_and_sources(tmp_path: Path) -> None:
    build = "from lrnnx_app.ops import _wheel; import sys; _wheel.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assets = [path for path in (ROOT / "data_modules" / "assets").rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in assets} <= names
    for folder in (path for path in (ROOT / "data_modules" / "assets").iterdir() if path.is_dir()):
        assert f"data_modules/assets/{folder.name}/ATTRIBUTION.md" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    recipes = {f"lrnnx_app/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes <= names
    assert "lrnnx_app/csrc/check.h" in names
    for folder in ("page", "plugin"):
        files = [path for path in (ROOT / "lrnnx_app" / "export" / folder).rglob("*") if path.is_file()]
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert {f"lrnnx_app/docs/{path.name}" for path in (ROOT / "lrnnx_app" / "docs").glob("*.md")} <= names


def test_a_release_is_tested_from_its_wheels_and_published_without_a_token() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "suite"
    assert set(jobs["suite"]["needs"]) == {"sources", "kernels"}
    assert "secrets." not in text
    actions = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert [name for name in actions if not re.search(r"@(v\d+|release/v1)$", name)] == []
    made = {f"kernels-{each['runner']}" for each in jobs["kernels"]["strategy"]["matrix"]["include"]}
    tested = {each["wheel"] for each in jobs["suite"]["strategy"]["matrix"]["include"]}
    assert tested == made | {"sources"}
