"""The short convolution against torch's own."""

import torch

from lrnnx_app.ops.short_conv import short_conv


def test_equals_conv1d():
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 7, 2), (2, 4), (2,)))
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    wanted = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=2).mT
    torch.testing.assert_close(short_conv(x, weight, bias)[0], wanted)
