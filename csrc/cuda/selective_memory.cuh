// The shared memory of a block of the selective scan's backward pass.
#pragma once
#include "selective_sum.cuh"

namespace lrnnx::cuda {

constexpr int kBackThreads = 256;

template <class E, int RULE>
struct alignas(16) BackShared {
  static constexpr bool STEP = RULE == kAsynchronous;
  static constexpr int C = kBlockOf, T = kStepsKept, SUM = T * C + 8;
  float B[T * kSlice], C_[T * kSlice];
  float2 x[T * C];                                // span, drive
  float dy[T * C], step[STEP ? T * C : 4];
  float weights[8 * 2 * ChannelSums<E>::SIZE];    // sums of C, B by warp
  float sums[(STEP ? 4 : 3) * kParts * SUM];      // y, of u, of the span, of the step: by part, step and channel
  float h[2][kSlice][C + 8];                      // kept states, in rows j · 4 + part: no bank conflicts
  E raw[2][4][T][C];                              // u, delta, grad, z
  Quad<E> quads[2 * T * kParts];                  // B and C, as they were read ahead
  Couple couples[C / 2];                          // pairs of channels; bias and D of them
  float4 constants[C / 2];
  int64_t places[C / 2];                          // of the first of a pair, at step 0
  struct alignas(16) Source {
    const char* data;
    int time;
  } sources[4 * T * C * sizeof(E) / 16],          // where each 16 bytes of raw come from
      weights_from[2 * T * kParts];               // and the rows of quads
  float4 totals[kBackThreads];                    // gradients of D and the bias, of pairs at a row of each chunk
  const float* kept[kBackThreads];                // where h comes from, at chunk 0
  struct alignas(16) Sink {
    float* to;                                    // at chunk 0
    int from, step;                               // place in `weights`; how far the next chunk's is, 0 if all share one
  } sinks[kBackThreads];                          // of sums of C and B
};

static_assert(sizeof(BackShared<float, kAsynchronous>) <= 99 << 10, "every GPU has as much");

}  // namespace lrnnx::cuda
