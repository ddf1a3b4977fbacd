"""Scans whose blocks wait for each other finish whatever else runs on the GPU, with the same bits."""

import ctypes
import subprocess

import pytest
import torch

from lrnnx_app.ops import _compilers, _extension, linear_scan  # noqa: F401 (defines the operators)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")

HOG = """
__global__ void hog(long long cycles) {
  extern __shared__ char space[];
  for (long long start = clock64(); clock64() - start < cycles;) space[threadIdx.x] = 1;
}
extern "C" int occupy(int blocks, int bytes, long long cycles, void* stream) {
  cudaFuncSetAttribute(hog, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  hog<<<blocks, 1024, bytes, (cudaStream_t)stream>>>(cycles);
  return cudaGetLastError();
}
"""


@pytest.fixture(scope="module")
def scan():
    """A scan with few rows, whose blocks share groups; and its result."""
    assert _extension.load("cuda"), _extension.status("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.rand(1, 16384, 64, device="cuda", generator=generator)
    b = torch.randn(1, 16384, 64, device="cuda", generator=generator)

    def run():
        states, last = torch.ops.lrnnx.linear_scan(a, b, None, None, None, False)
        return torch.ops.lrnnx.linear_scan_backward(b, last, a, states, None, None, None, False)[0]

    return run, run()


def test_two_streams(scan):
    run, expected = scan
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    wrong = torch.zeros(2, dtype=torch.long, device="cuda")
    for turn in range(5000):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                out = run()
                if turn % 50 == 0:
                    wrong[i] += (out != expected).sum()
    torch.cuda.synchronize()
    assert wrong.tolist() == [0, 0]


def test_beside_a_kernel_on_half_of_the_processors(scan, tmp_path):
    run, expected = scan
    (tmp_path / "hog.cu").write_text(HOG)
    command = [
        _compilers.find_nvcc(),
        "-arch=native",
        "-shared",
        "-Xcompiler",
        "-fPIC",
        "hog.cu",
        "-o",
        "hog.so",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    library = ctypes.CDLL(str(tmp_path / "hog.so"))
    device = torch.cuda.get_device_properties(0)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    outputs = []
    for _ in range(20):
        error = library.occupy(
            device.multi_processor_count // 2,
            device.shared_memory_per_block_optin,
            ctypes.c_longlong(2_000_000),
            ctypes.c_void_p(side.cuda_stream),
        )
        assert error == 0
        outputs.append(run())
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected) for out in outputs)


def test_captured_graph(scan):
    run, expected = scan
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(100):
        out.zero_()
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
