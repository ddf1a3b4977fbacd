// Launches of a few µs in a row: each is on the GPU before the one before it has ended, and waits there for its end.
//
//   time ->
//   launch 1    | works .............. |
//   launch 2       | on the GPU, waits | works ............. |    on the GPU once all blocks of 1 run
//   launch 3             | waits                             | works .. |
#pragma once
#include "request.h"

namespace lrnnx::cuda {

// The first thing that a chained kernel does, in all threads: nothing is read or written before. Several may be on the
// GPU, but as each waits for the end of the one before it, it waits for all that came before that too.
DEVICE void await_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
#endif
}

template <class Kernel, class Arguments>
void start_chained(Kernel kernel, dim3 grid, dim3 threads, cudaStream_t stream, const Arguments& arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  check(cudaLaunchKernelEx(&config, kernel, arguments));
}

}  // namespace lrnnx::cuda
