// From run-time dtypes and widths to one instance of a walk, and its tasks spread over threads.
#pragma once
#include <algorithm>

#include "../check.h"
#include "walk.h"

namespace lrnnx::cpu {

// Calls f.template operator()<A, E, S>() for coefficients of the given dtype beside values of another.
template <class F>
void by_dtype(ScalarType a, ScalarType b, const F& f) {
  using torch::headeronly::BFloat16;
  using torch::headeronly::Half;
  if (b == ScalarType::Float) return f(float{}, float{}, float{});
  if (b == ScalarType::Double) return f(double{}, double{}, double{});
  if (b == ScalarType::BFloat16) return a == b ? f(BFloat16{}, BFloat16{}, float{}) : f(float{}, BFloat16{}, float{});
  if (b == ScalarType::Half) return a == b ? f(Half{}, Half{}, float{}) : f(float{}, Half{}, float{});
  STD_TORCH_CHECK(false, "linear_scan takes float32, float64, bfloat16 and float16");
}

// Coefficients keep the dtype of the values or take that of the sums.
inline ScalarType coefficient_dtype(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() ? b.scalar_type() : state_dtype(b.scalar_type());
}

using Walk = void (*)(const Job&, int64_t batch, int64_t first, int width);

constexpr int64_t kWorthThread = 32768;  // elements below which waking a thread costs more than it saves

// Tasks are batch × blocks of channels; blocks shrink until every thread has one.
inline void spread(const Job& job, int64_t batch, Walk full, Walk half, Walk any) {
  const int64_t N = job.channels, threads = torch::stable::get_num_threads();
  int64_t width = kBlock;
  while (width > 16 && batch * ((N + width - 1) / width) < threads) width /= 2;
  const int64_t blocks = (N + width - 1) / width;
  const int64_t grain = kWorthThread / (job.time * width) + 1;
  torch::stable::parallel_for(0, batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task % blocks * width;
      const int count = static_cast<int>(std::min(width, N - first));
      (count == kBlock ? full : count == kBlock / 2 ? half : any)(job, task / blocks, first, count);
    }
  });
}

}  // namespace lrnnx::cpu
