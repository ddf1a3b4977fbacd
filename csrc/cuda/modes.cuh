// Lengths and resets become the modes of steps, one thread for each (b, t):
//
//   T = 6, length 5, reset before step 2     t           0      1      2      3      4      5
//                                            forward     plain  plain  cut    plain  plain  hold
//                                            reverse     plain  cut    plain  plain  plain  hold
#pragma once
#include "request.h"

namespace lrnnx::cuda {

static __global__ void fill_modes(int* mode, const int64_t* lengths, const bool* reset, const bool* first, int64_t steps,
                                  int T, bool reverse) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < steps; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t b = i / T, t = i - b * T, start = reverse ? t + 1 : t;
    const bool held = lengths && t >= lengths[b], cut = reset && start < T && reset[b * T + start];
    mode[i] = held ? kHold : (cut ? kCut : kPlain) | (first && first[i] ? kUnit : kPlain);
  }
}

// The mode of each step, int32 (B, T), from lengths, resets and first steps; none if none is given.
inline Optional modes(const Tensor& like, const Extent& x, const Optional& lengths, const Optional& reset, bool reverse,
                      const Optional& first = std::nullopt) {
  if (!lengths && !reset && !first) return std::nullopt;
  const Optional ends = dense(lengths, ScalarType::Long), starts = dense(reset, ScalarType::Bool);
  const Optional units = dense(first, ScalarType::Bool);
  Tensor mode = empty(like, {x.batch, x.time}, ScalarType::Int);
  const int64_t steps = x.batch * x.time;
  const int blocks = static_cast<int>(std::min<int64_t>((steps + 255) / 256, 1024));
  fill_modes<<<blocks, 256, 0, current_stream(like)>>>(
      static_cast<int*>(mode.data_ptr()), data_or_null<int64_t>(ends), data_or_null<bool>(starts),
      data_or_null<bool>(units), steps, static_cast<int>(x.time), reverse);
  check(cudaGetLastError());
  return mode;
}

}  // namespace lrnnx::cuda
