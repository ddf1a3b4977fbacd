"""LV2: a bundle that filters one channel in hosts such as PipeWire, Ardour and Audacity."""

import ctypes
from pathlib import Path

from torch import Tensor

from lrnnx_app.export import _plugin
from lrnnx_app.export._output import Options
from lrnnx_app.runs.run import Run

ENDING = ".lv2"


class Descriptor(ctypes.Structure):
    """`lv2_plugin` in plugin/lv2/lv2_abi.h."""

    _fields_ = (
        ("uri", ctypes.c_char_p),
        (
            "instantiate",
            ctypes.CFUNCTYPE(
                ctypes.c_void_p, ctypes.c_void_p, ctypes.c_double, ctypes.c_char_p, ctypes.c_void_p
            ),
        ),
        ("connect", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)),
        ("activate", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("run", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)),
        ("deactivate", ctypes.c_void_p),
        ("cleanup", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("extension", ctypes.c_void_p),
    )


INTERFACE = _plugin.Interface(
    "lv2", Descriptor, (b"", None), 1.0, "$(HOME)/.lv2/{name}.lv2", "{name}.so manifest.ttl plugin.ttl"
)


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the bundle of a plug-in and build it, see `_plugin.write`."""
    return _plugin.write(run, path, options, INTERFACE)


def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written plug-in for a signal x (1, T, 1), see `_plugin.filtered`."""
    return _plugin.filtered(path, INTERFACE, x)
