"""The build backend that pyproject.toml names: hatchling's, whose wheel can hold kernels.

    pip wheel . --no-deps --config-settings kernels=cpu,cuda

builds all libraries for each target of `_inside` into the cache, and puts them into a wheel for any Python.
The wheel's tag says how old the system may be, as auditwheel finds. Without that setting nothing is compiled.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling import build as plain
from hatchling.build import (  # what else a frontend calls
    build_editable,  # noqa: F401
    build_sdist,  # noqa: F401
    get_requires_for_build_editable,  # noqa: F401
    get_requires_for_build_sdist,  # noqa: F401
)
from hatchling.builders.wheel import WheelBuilder

Settings = dict[str, Any] | None
GPUS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")  # unless LRNNX_ARCH names others


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    more = ["auditwheel>=6.8", "numpy", "torch>=2.11"] if _devices(config_settings) else []
    return [*plain.get_requires_for_build_wheel(), *more]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    devices = _devices(config_settings)
    if not devices:
        return plain.build_wheel(wheel_directory)
    _expect_auditwheel()
    builder = _WithKernels(os.getcwd())
    builder.libraries = {place: path for device in devices for place, path in _built(device)}
    with tempfile.TemporaryDirectory(dir=wheel_directory) as scratch:
        (wheel,) = builder.build(directory=scratch, versions=["standard"])
        tagged = Path(scratch, "tagged")
        repair = ["repair", "--plat", "auto", "--only-plat", "--patcher", "none", "-w", str(tagged), wheel]
        subprocess.run([sys.executable, "-m", "auditwheel", *repair], check=True)
        (wheel,) = tagged.iterdir()
        os.replace(wheel, Path(wheel_directory, wheel.name))
    return wheel.name


class _WithKernels(WheelBuilder):
    """Puts `libraries`, by their place in the wheel, into it."""

    libraries: dict[str, Path]

    def get_default_build_data(self) -> dict[str, Any]:
        files = {str(path): place for place, path in self.libraries.items()}
        tag = f"py3-none-linux_{platform.machine()}"
        here = {"pure_python": False, "tag": tag, "force_include": files}
        return super().get_default_build_data() | here


def _devices(settings: Settings) -> list[str]:
    """What the setting `kernels` names; it may be given several times."""
    named = (settings or {}).get("kernels", [])
    devices = [part for text in ([named] if isinstance(named, str) else named) for part in text.split(",")]
    if set(devices) - {"cpu", "cuda"}:
        raise SystemExit(f"kernels={','.join(devices)}: there are kernels for cpu and cuda")
    if devices and sys.platform != "linux":
        raise SystemExit(
            "kernels: wheels hold kernels for Linux only; elsewhere they are built when first used"
        )
    return devices


def _expect_auditwheel() -> None:
    """Before minutes of compiling, since a frontend without isolation does not install it."""
    if find_spec("auditwheel") is None:
        raise SystemExit("kernels: auditwheel is missing; pip install 'auditwheel>=6.8'")


def _built(device: str) -> Iterator[tuple[str, Path]]:
    """The place in the wheel, and the file, of each library for each target."""
    from lrnnx_app.ops import _build, _inside
    from lrnnx_app.ops._compilers import BuildError

    levels = _inside.LEVELS.get(platform.machine(), {})
    for folder, target in zip(levels, levels, strict=True) if device == "cpu" else _gpus():
        for path in _build.build(device, _build.libraries(device), target).values():
            if isinstance(path, BuildError):
                raise path
            yield f"lrnnx_app/kernels/{folder}/{path.name}", path


def _gpus() -> Iterator[tuple[str, str]]:
    """Folder and target for each kind of GPU; the code of the last is for later ones too."""
    from lrnnx_app.ops._compilers import architectures, find_nvcc

    def said(option: str) -> str:
        return subprocess.run(
            [find_nvcc(older=True), option], capture_output=True, text=True, check=True
        ).stdout

    known = said("--list-gpu-code").split()
    (cuda,) = re.findall(r"release (\d+)", said("--version"))
    named = map("sm_{}".format, architectures()) if "LRNNX_ARCH" in os.environ else filter(known.count, GPUS)
    *first, last = named
    for target in (*first, f"{last}+PTX"):
        yield f"cuda{cuda}-{target}", target
