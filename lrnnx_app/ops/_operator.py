"""Defines operators that are torch code on every device."""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("lrnnx", "FRAGMENT")


def operator(
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., Any],
) -> None:
    """Define `torch.ops.lrnnx.<name>`; `torch.library.custom_op` would import torch's compiler when called.

    Args:
        schema: name, arguments and results, as torch writes them.
        fake: gives empty results of the right shapes and dtypes.
        backward, setup: as of `torch.library.register_autograd`.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lrnnx::{name}", fake, lib=_library)
    torch.library.register_autograd(f"lrnnx::{name}", backward, setup_context=setup, lib=_library)
