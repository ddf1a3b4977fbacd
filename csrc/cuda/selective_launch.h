// From a selective scan to its launches, one function for each walk; instances are in instances/.
#pragma once
#include "request.h"
#include "selective.h"

namespace lrnnx::cuda {

template <class E, int PL>
void walk_output(const Selective& p, int rule, cudaStream_t stream);
template <class E, int PL>
void walk_states(const Selective& p, int rule, cudaStream_t stream);
template <class E, int PL>
void walk_reverse(const Selective& p, int rule, cudaStream_t stream);
template <class E, int PL>
void walk_back(const Selective& p, int rule, cudaStream_t stream);

inline int tiles_of(const Selective& p, int channels) { return (p.share + channels - 1) / channels; }

template <class Kernel, class... Arguments>
void start(Kernel kernel, dim3 grid, int threads, int64_t bytes, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (bytes > 48 << 10) check(cudaFuncSetAttribute(kernel, most, static_cast<int>(bytes)));
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace lrnnx::cuda
