"""Checks a machine: its devices, its builds, and whether every operator of `ops/_table.py` is right on it.

`run` gathers a report; `text` shows it; `lrnnx doctor` exits with code 1 unless `report.ok`.
"""

import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lrnnx_app.console.tables import table
from lrnnx_app.ops import _compilers, _extension, _ninja
from lrnnx_app.ops._compare import worst_errors
from lrnnx_app.ops._examples import Sizes
from lrnnx_app.ops._table import OPERATORS
from lrnnx_app.reports import plugin_checks

SIZES = (Sizes(2, 1, 3), Sizes(3, 33, 40), Sizes(2, 130, 5))


@dataclass
class Report:
    """The state of this machine. `ok` is false if an expected kernel is missing, or one is wrong."""

    versions: dict[str, str]
    devices: dict[str, str]
    compilers: dict[str, str]
    kernels: dict[str, str]
    checks: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)  # of plugins
    rules: list[dict[str, Any]] = field(default_factory=list)  # of plugins
    advice: list[str] = field(default_factory=list)
    ok: bool = True


def run(build: bool = False, plugins: Sequence[Path] = ()) -> Report:
    """Compare every operator with its definition on every device of this machine.

    Args:
        build: build and load the kernels for every device for which a compiler is found. Without a GPU, CUDA
            kernels are built for the architectures in LRNNX_ARCH.
        plugins: plugin files, whose layers and rules are checked too.
    """
    present = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    failures = list(_load(build, present))
    report = Report(
        _versions(), _devices(), _tools(), {name: _extension.status(name) for name in ("cpu", "cuda")}
    )
    for device in present:
        report.checks += _check(device)
    wrong = [_cure(row) for row in report.checks if not row["ok"]]
    report.layers, report.rules = plugin_checks.layers(plugins), plugin_checks.rules(plugins)
    report.advice = failures + wrong + list(_advice(present))
    rows = (*report.checks, *report.layers, *report.rules)
    report.ok = not failures and all(row["ok"] for row in rows)
    return report


def text(report: Report) -> str:
    """The report as text."""
    groups = {
        "versions": report.versions,
        "devices": report.devices,
        "compilers": report.compilers,
        "kernels": report.kernels,
    }
    lines = [line for name, entries in groups.items() for line in (name, *_entries(entries))]
    lines += [
        "operators against their definitions in float64: largest relative errors",
        table(_by_operator(report.checks)),
    ]
    lines += ["layers of plugins", table(report.layers)] if report.layers else []
    lines += ["rules of plugins", table(report.rules)] if report.rules else []
    lines += ["advice", *(f"  {line}" for line in report.advice)] if report.advice else []
    return "\n".join([*lines, "all well" if report.ok else "something is wrong: see above"])


def _entries(entries: dict[str, str]) -> Iterator[str]:
    width = max(map(len, entries))
    return (f"  {name.ljust(width)}  {value}" for name, value in entries.items())


def _load(build: bool, present: list[str]) -> Iterator[str]:
    """Load kernels. If a build was asked for, yield a message for each device for which it fails."""
    for device in ("cpu", "cuda"):
        if device in present:
            there = _extension.load(device)
        elif build and device in _extension.wanted() and _has_nvcc():
            there = _extension.prepare(device)
        else:
            there = True
        if build and not there:
            yield f"{device}: {_extension.status(device)}"


def _has_nvcc() -> bool:
    try:
        return bool(_compilers.find_nvcc())
    except _compilers.BuildError:
        return False


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


def _tools() -> dict[str, str]:
    found = {}
    for name, find in {
        "C++": _compilers.host_compiler,
        "CUDA": _compilers.find_nvcc,
        "ninja": _ninja.ninja,
    }.items():
        try:
            found[name] = _first_line(find())
        except (_compilers.BuildError, FileNotFoundError) as error:
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
        if _extension.load(device):
            yield f"{device}: scans run on built kernels, in float32, float64, bfloat16 and float16"
        else:
            yield f"{device}: some or all scans run on slower torch code: {_extension.status(device)}"
    if "cuda" not in present:
        yield "cuda: no GPU that torch can use; everything runs on the CPU"


def _check(device: str) -> Iterator[dict[str, Any]]:
    """A row for each operator and dtype, with the worst error over its variants and odd sizes."""
    for name, operator in OPERATORS.items():
        for dtype, worst in worst_errors(operator, device, SIZES).items():
            allowed = operator.allowed(dtype)
            yield {
                "op": name,
                "device": device,
                "dtype": str(dtype).removeprefix("torch."),
                "output error": worst.output,
                "gradient error": worst.gradient,
                "output allowed": allowed.output,
                "gradient allowed": allowed.gradient,
                "kernel": dtype in operator.kernels.get(device, ()) and _extension.load(device, name),
                "ok": worst.within(allowed),
            }


def _by_operator(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each operator and device: its largest error by dtype."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for check in checks:
        row = rows.setdefault((check["op"], check["device"]), {"op": check["op"], "device": check["device"]})
        row["runs on"] = "kernels" if check["kernel"] or row.get("runs on") == "kernels" else "torch code"
        error, allowed = _worse(check)[1:]
        row[check["dtype"]] = error if check["ok"] else f"{error:.2g} > {allowed:.0e}"
    return list(rows.values())


def _worse(check: dict[str, Any]) -> tuple[str, float, float]:
    """Error and limit of outputs or of gradients: of those beyond their limit, else of the larger error."""
    found = [(where, check[f"{where} error"], check[f"{where} allowed"]) for where in ("output", "gradient")]
    return next((each for each in found if each[1] > each[2]), max(found, key=lambda each: each[1]))


def _cure(check: dict[str, Any]) -> str:
    """A message for a failed check: what is wrong and what to do."""
    device, code = check["device"], "kernel" if check["kernel"] else "torch code"
    where, error, allowed = _worse(check)
    start = (
        f"{device}: the {code} of {check['op']} is wrong in {check['dtype']}: {where} error "
        f"{error:.2g}, and {allowed:.0e} is allowed; "
    )
    if not check["kernel"]:
        return start + f"reinstall torch {torch.__version__}, or try another version"
    library = _extension.loaded(device, check["op"])
    return start + f"delete {library} to build it again, or set LRNNX_BUILD=off to run on torch code"
