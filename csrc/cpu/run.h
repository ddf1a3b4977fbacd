// What the entries of all operators share: a job from their tensors, its blocks over threads, dtypes to instances.
//
// 2 sequences of 600 channels, 8 threads. Three blocks of 256 channels would give 6 tasks only, so blocks are narrower:
//
//   task         0           1             2             3             4             5           ..    9
//   sequence     0           0             0             0             0             1                 1
//   channels     0 .. 127    128 .. 255    256 .. 383    384 .. 511    512 .. 599    0 .. 127          512 .. 599
#pragma once
#include <algorithm>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../check.h"
#include "walk.h"

namespace lrnnx::cpu {

constexpr int64_t kWorthThread = 32768;   // elements below which waking a thread costs more than it saves
constexpr int64_t kLarge = 16 << 20;      // bytes that do not stay in the caches
constexpr int64_t kHugePage = 2 << 20;

// Touching a large tensor for the first time costs more than filling it, unless its pages are large too.
inline Tensor fresh(Tensor x) {
#ifdef __linux__
  const int64_t bytes = x.numel() * x.element_size();
  if (bytes >= 2 * kHugePage) {
    const auto begin = reinterpret_cast<uintptr_t>(x.data_ptr()), page = (begin + kHugePage - 1) & -kHugePage;
    madvise(reinterpret_cast<void*>(page), (begin + bytes - page) & -kHugePage, MADV_HUGEPAGE);
  }
#endif
  return x;
}

inline Tensor fresh_like(const Tensor& x, ScalarType dtype) {
  return fresh(torch::stable::empty_like(dense(x, dtype)));
}

inline Tensor state_like(const Tensor& x, ScalarType dtype) {
  return torch::stable::empty_like(dense(torch::stable::select(x, 1, 0), dtype));
}

// Over batch or blocks, in a fixed order, so that results repeat bit for bit.
inline Tensor sum_first(const Tensor& part) { return torch::stable::sum(part, std::vector<int64_t>{0}, true); }

// Tensors that a job points into, in the dtypes that it reads; `values` is what they must fit, (B, T, …).
struct Inputs {
  Optional h0, lengths, reset;

  Inputs(const Tensor& values, const Optional& h0_, const Optional& lengths_, const Optional& reset_, ScalarType wide)
      : h0(dense(h0_, wide)), lengths(dense(lengths_, ScalarType::Long)), reset(dense(reset_, ScalarType::Bool)) {
    const Expect expect(values);
    expect.shaped("h0", h0, state_sizes(values));
    expect.steps(lengths, reset);
  }

  Job job(const Tensor& states, bool reverse) const {
    const Extent x(states);
    Job job{};
    job.h0 = job.first = data_or_null<void>(h0);
    job.lengths = data_or_null<int64_t>(lengths);
    job.reset = data_or_null<bool>(reset);
    job.batch = x.batch;
    job.time = x.time;
    job.channels = x.channels;
    job.reverse = reverse;
    const int64_t row = x.channels * states.element_size();
    job.past_caches = row % 32 == 0 && x.batch * x.time * x.planes * row >= kLarge;
    return job;
  }
};

// Blocks of channels grow fewer and wider with the batch, so that every thread has one.
inline int64_t block_width(int64_t batch, int64_t channels) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t blocks = (channels + kBlock - 1) / kBlock;
  while (batch * blocks < threads && channels > kUnroll * blocks) blocks *= 2;
  const int64_t width = (channels + blocks - 1) / blocks;
  return (width + kUnroll - 1) / kUnroll * kUnroll;
}

// Room for the gradient of dt (B, T) by each block of channels.
inline Tensor partial_times(const Tensor& dt, const Extent& x, int64_t width) {
  return torch::stable::new_empty(dt, {(x.channels + width - 1) / width, x.batch, x.time});
}

// One walk for each batch element and block of channels.
template <class Source, bool BACKWARD, class Operands>
void spread(const Job& job, const Operands& operands) {
  if (job.batch * job.channels == 0) return;
  const int64_t width = block_width(job.batch, job.channels), blocks = (job.channels + width - 1) / width;
  const int64_t grain = kWorthThread / (job.time * width) + 1;
  torch::stable::parallel_for(0, job.batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task % blocks * width;
      const Block block{task / blocks, first, static_cast<int>(std::min(width, job.channels - first))};
      Source source(job, block, operands);
      if constexpr (BACKWARD) backward(job, source, block); else forward(job, source, block);
    }
#ifdef __AVX__
    _mm_sfence();  // what went past the caches is there for other threads
#endif
  });
}

// f(E, S): storage of the given dtype, and that of its sums.
template <class F>
void by_dtype(ScalarType dtype, const F& f) {
  using torch::headeronly::BFloat16;
  using torch::headeronly::Half;
  if (dtype == ScalarType::Float) return f(float{}, float{});
  if (dtype == ScalarType::Double) return f(double{}, double{});
  if (dtype == ScalarType::BFloat16) return f(BFloat16{}, float{});
  if (dtype == ScalarType::Half) return f(Half{}, float{});
  STD_TORCH_CHECK(false, "kernels take float32, float64, bfloat16 and float16");
}

// Half-precision tensors pass through float32 where arithmetic outweighs memory: half as many instances to build.
template <class F>
void by_wide_dtype(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) return f(double{});
  STD_TORCH_CHECK(dtype == ScalarType::Float, "kernels take float32, float64, bfloat16 and float16");
  f(float{});
}

// f(P): real numbers or complex ones.
template <class F>
void by_planes(const Extent& x, const F& f) {
  x.planes == 1 ? f(std::integral_constant<int, 1>{}) : f(std::integral_constant<int, 2>{});
}

}  // namespace lrnnx::cpu
