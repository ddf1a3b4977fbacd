"""The doctor finds a healthy machine healthy, and a wrong kernel wrong."""

import dataclasses
import json

import pytest
import torch

from lrnnx_app.ops import _compilers, _extension
from lrnnx_app.ops._examples import Sizes
from lrnnx_app.ops._table import OPERATORS
from lrnnx_app.reports import doctor


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(doctor, "SIZES", (Sizes(1, 5, 3),))


def test_healthy_machine():
    report = doctor.run()
    assert report.ok, doctor.text(report)
    found = {(row["op"], row["dtype"]) for row in report.checks if row["device"] == "cpu"}
    assert found == {
        (name, str(dtype).removeprefix("torch.")) for name, op in OPERATORS.items() for dtype in op.dtypes
    }
    assert doctor.text(report).endswith("all well")
    assert json.loads(json.dumps(dataclasses.asdict(report)))["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", OPERATORS)
def test_wrong_operator_is_named_with_its_error_and_a_cure(monkeypatch, name):
    """Whatever operator is wrong by a thousandth, in float64 alone."""
    right = OPERATORS[name]

    def wrong(**operands):
        outputs = right.run(**operands)
        double = any(x.dtype == torch.float64 for x in operands.values() if isinstance(x, torch.Tensor))
        off = 1.001 if double else 1
        return outputs * off if isinstance(outputs, torch.Tensor) else tuple(y * off for y in outputs)

    monkeypatch.setitem(OPERATORS, name, dataclasses.replace(right, run=wrong))
    for other in set(OPERATORS) - {name}:
        monkeypatch.delitem(OPERATORS, other)
    report = doctor.run()
    assert not report.ok
    assert [row["dtype"] for row in report.checks if not row["ok"]] == ["float64"] * len(report.devices)
    (said,) = [line for line in report.advice if name in line and line.startswith("cpu")]
    assert f"of {name} is wrong in float64: output error 0.001, and " in said
    assert "LRNNX_BUILD=off" in said or "reinstall torch" in said
    assert "something is wrong" in doctor.text(report)


@pytest.mark.parametrize("broken", [(), ("row_linear", "advance")])
def test_without_a_gpu_all_cuda_kernels_are_built_if_there_is_nvcc(monkeypatch, tmp_path, broken):
    def build(device, names):
        assert device == "cuda"
        error = _compilers.BuildError("the compiler failed")
        return {name: error if name in broken else tmp_path / name / f"{name}.so" for name in names}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_extension, "load", lambda device, *names: device == "cpu")
    monkeypatch.setattr(_extension, "build", build)
    monkeypatch.setattr(_extension, "_failures", {})
    monkeypatch.setattr(_extension, "_words", {})
    monkeypatch.setattr(_compilers, "find_nvcc", lambda: "nvcc")
    monkeypatch.setenv("LRNNX_BUILD", "cuda")
    for name in set(OPERATORS) - {"rfft"}:
        monkeypatch.delitem(OPERATORS, name)
    report = doctor.run(build=True)
    assert report.ok == (not broken)
    assert f"built in {tmp_path}" in report.kernels["cuda"]
    said = [line for line in report.advice if line.startswith("cuda: ") and "the compiler failed" in line]
    assert len(said) == bool(broken)
    assert all(name in said[0] for name in broken)
