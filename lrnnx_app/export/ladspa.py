"""LADSPA: a library that filters one channel in hosts such as PipeWire, OBS, Ardour and Audacity."""

import ctypes
from pathlib import Path

from torch import Tensor

from lrnnx_app.export import _plugin
from lrnnx_app.export._output import Options
from lrnnx_app.runs.run import Run

ENDING = None


class Descriptor(ctypes.Structure):
    """`ladspa_plugin` in plugin/ladspa/ladspa_abi.h."""

    _fields_ = (
        ("id", ctypes.c_ulong),
        ("label", ctypes.c_char_p),
        ("properties", ctypes.c_int),
        *((word, ctypes.c_char_p) for word in ("name", "maker", "copyright")),
        ("ports", ctypes.c_ulong),
        *((word, ctypes.c_void_p) for word in ("kinds", "names", "ranges", "data")),
        ("instantiate", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong)),
        ("connect", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p)),
        ("activate", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("run", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ulong)),
        *((word, ctypes.c_void_p) for word in ("run_adding", "set_run_adding_gain", "deactivate")),
        ("cleanup", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    )


INTERFACE = _plugin.Interface("ladspa", Descriptor, (), 0.0, "$(HOME)/.ladspa", "{name}.so")


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the folder of a plug-in and build it, see `_plugin.write`."""
    return _plugin.write(run, path, options, INTERFACE)


def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written plug-in for a signal x (1, T, 1), see `_plugin.filtered`."""
    return _plugin.filtered(path, INTERFACE, x)
