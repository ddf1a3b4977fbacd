"""What this machine has, what was built on it, and whether every operator is right here.

`run` gathers a report; `text` shows it; `lrnnx doctor` exits with code 1 unless `report.ok`.
"""

import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.console.tables import table
from lrnnx_app.ops import _extension, linear_scan
from lrnnx_app.reports.layer_checks import checked

LENGTHS = (1, 2, 33, 127)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass
class Report:
    """The state of this machine; `ok` is false if a kernel that should be there is missing or wrong."""

    versions: dict[str, str]
    devices: dict[str, str]
    compilers: dict[str, str]
    kernels: dict[str, str]
    checks: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)  # of plugins
    advice: list[str] = field(default_factory=list)
    ok: bool = True


def run(build: bool = False, plugins: Sequence[Path] = ()) -> Report:
    """Look at the machine and compare every operator with its reference on every device of it.

    Args:
        build: build and load the kernels of every device that a compiler is found for, ahead of use; without
            a GPU, CUDA kernels are built for those that LRNNX_ARCH names.
        plugins: files that are loaded, whose layers are tried.
    """
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    failures = list(_build(build, present))
    report = Report(
        _versions(), _devices(), _compilers(), {name: _extension.status(name) for name in ("cpu", "cuda")}
    )
    for device in present:
        report.checks += _check_scan(device)
    report.layers = checked(plugins)
    report.advice = failures + list(_advice(present))
    report.ok = not failures and all(row["ok"] for row in (*report.checks, *report.layers))
    return report


def text(report: Report) -> str:
    """The report for people."""
    groups = {
        "versions": report.versions,
        "devices": report.devices,
        "compilers": report.compilers,
        "kernels": report.kernels,
    }
    lines = [line for name, entries in groups.items() for line in (name, *_entries(entries))]
    lines += ["operators against their references in float64", table(report.checks)]
    lines += ["layers of plugins", table(report.layers)] if report.layers else []
    lines += ["advice", *(f"  {line}" for line in report.advice)] if report.advice else []
    return "\n".join([*lines, "all well" if report.ok else "something is wrong: see above"])


def _entries(entries: dict[str, str]) -> Iterator[str]:
    width = max(map(len, entries))
    return (f"  {name.ljust(width)}  {value}" for name, value in entries.items())


def _build(build: bool, present: list[str]) -> Iterator[str]:
    """Load kernels, yielding what went wrong where a build was asked for."""
    for device in ("cpu", "cuda"):
        if device in present:
            loaded = _extension.load(device)
            if build and not loaded:
                yield f"{device}: {_extension.status(device)}"
        elif build and device in _extension.wanted():
            try:
                _extension.find_nvcc()
            except _extension.BuildError:
                continue
            try:
                _extension.build(device)
            except _extension.BuildError as error:
                yield f"{device}: {error}"


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda or "none",
        "system": platform.platform(),
    }


def _devices() -> dict[str, str]:
    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        capability = f"compute capability {properties.major}.{properties.minor}"
        found[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory >> 30} GiB, {capability}"
    return found


def _compilers() -> dict[str, str]:
    found = {}
    for name, find in {
        "C++": _extension.host_compiler,
        "CUDA": _extension.find_nvcc,
        "ninja": _extension.ninja,
    }.items():
        try:
            found[name] = _first_line(find())
        except _extension.BuildError as error:
            found[name] = str(error)
    return found


def _first_line(program: str) -> str:
    run = subprocess.run(
        [shutil.which(program) or program, "--version"], capture_output=True, text=True, check=False
    )
    lines = [line for line in run.stdout.splitlines() if line.strip()]
    version = next((line for line in lines if "release" in line), lines[0] if lines else "does not run")
    return f"{program}: {version.strip()}"


def _advice(present: list[str]) -> Iterator[str]:
    for device in present:
        if device in _extension.wanted() and _extension.load(device):
            yield f"{device}: scans run on built kernels, in float32, float64, bfloat16 and float16"
        else:
            yield f"{device}: scans run on torch code, several times slower: {_extension.status(device)}"
    if "cuda" not in present:
        yield "cuda: no GPU that torch can use; everything runs on the CPU"


def _check_scan(device: str) -> Iterator[dict[str, Any]]:
    """A row for each kind of scan and dtype, with the worst error over odd lengths and both directions."""
    for planes in (1, 2):
        for constant in (False, True):
            for dtype, tolerance in TOLERANCE.items():
                errors = [
                    _scan_errors(device, time, planes, constant, dtype, reverse)
                    for time in LENGTHS
                    for reverse in (False, True)
                ]
                outputs, gradients = (max(error[i] for error in errors) for i in range(2))
                yield {
                    "op": f"linear_scan {('real', 'complex')[planes - 1]}" + ", constant a" * constant,
                    "device": device,
                    "dtype": str(dtype).removeprefix("torch."),
                    "output error": outputs,
                    "gradient error": gradients,
                    "allowed": tolerance,
                    "ok": outputs <= tolerance and gradients <= tolerance,
                }


def _scan_errors(
    device: str, time: int, planes: int, constant: bool, dtype: torch.dtype, reverse: bool
) -> tuple[float, float]:
    """Largest relative error of outputs and of gradients of one scan, with lengths and resets forward."""
    generator = torch.Generator().manual_seed(time)
    state = (5,) if planes == 1 else (2, 5)
    a = torch.rand(*((1, 1) if constant else (2, time)), *state, generator=generator) * 0.7
    b = torch.randn(2, time, *state, generator=generator)
    h0 = torch.randn(2, *state, generator=generator).to(linear_scan.state_dtype(dtype))
    inputs = [a.to(dtype), b.to(dtype), h0]
    mask = {
        "lengths": torch.tensor([time, (time + 1) // 2]),
        "reset": torch.rand(2, time, generator=generator) < 0.1,
    }
    mask = {} if reverse else mask
    got = _differentiate(linear_scan.linear_scan, inputs, mask, reverse, device)
    want = _differentiate(linear_scan.reference, [x.double() for x in inputs], mask, reverse, "cpu")
    errors = [_relative(x, y) for x, y in zip(got, want, strict=True)]
    return max(errors[:2]), max(errors[2:])


def _differentiate(
    scan: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    mask: dict[str, Tensor],
    reverse: bool,
    device: str,
) -> list[Tensor]:
    """Outputs of a scan and the gradients of their sum of squares, halved."""
    leaves = [x.to(device).requires_grad_() for x in inputs]
    outputs = scan(*leaves, **{name: x.to(device) for name, x in mask.items()}, reverse=reverse)
    total = sum((y.double() ** 2).sum() / 2 for y in outputs)
    assert isinstance(total, Tensor)
    return [x.detach().double().cpu() for x in (*outputs, *torch.autograd.grad(total, leaves))]


def _relative(out: Tensor, ref: Tensor) -> float:
    """‖out − ref‖ / ‖ref‖; infinite where out is not a number."""
    error = (out - ref).norm() / ref.norm().clamp_min(1e-30)
    return error.nan_to_num(float("inf")).item()


if __name__ == "__main__":
    report = run(build=True)
    print(text(report))
    raise SystemExit(not report.ok)
