"""The doctor finds a healthy machine healthy, and a wrong kernel wrong."""

import dataclasses
import json

import pytest
import torch

from lrnnx_app.ops import linear_scan
from lrnnx_app.reports import doctor


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(doctor, "LENGTHS", (1, 5))


@pytest.mark.usefixtures("short")
def test_healthy_machine():
    report = doctor.run()
    assert report.ok, doctor.text(report)
    assert {row["dtype"] for row in report.checks} == {"float64", "float32", "float16", "bfloat16"}
    assert doctor.text(report).endswith("all well")
    assert json.loads(json.dumps(dataclasses.asdict(report)))["versions"]["torch"] == torch.__version__


@pytest.mark.usefixtures("short")
def test_wrong_kernel(monkeypatch):
    right = linear_scan.linear_scan

    def wrong(a, b, h0, **options):
        states, last = right(a, b, h0, **options)
        return states + 0.1, last

    monkeypatch.setattr(doctor.linear_scan, "linear_scan", wrong)
    report = doctor.run()
    assert not report.ok
    assert "something is wrong" in doctor.text(report)
