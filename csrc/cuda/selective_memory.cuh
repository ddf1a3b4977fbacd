// The shared memory of a block of the selective scan's backward pass: 8 warps, 64 channels, chunks of 8 steps, walked
// from the last chunk to the first.
//
//   recurrence     warp w has channels 8 w .. 8 w + 7; its lanes 0-7, 8-15, 16-23, 24-31 hold parts 0 to 3 of their state
//   elementwise    warp w has step w of the chunk; lane l has the channels 2 l and 2 l + 1
//
//   global u, delta, grad, z  --copied a chunk ahead--> raw     --elementwise--> x: {span, drive}, dy  [step][channel]
//   global B, C               --copied ahead----------> quads   -- as float ---> B, C_  [step][16]
//   global states kept        --copied ahead----------> h  [16][channel], the state before the chunk's first step
//
//   recurrence, in registers    h[0] -> h[1] .. -> h[8]     then r, the state's gradient, from step 7 to step 0
//     over a channel's states   sums: y                     sums: gradients of u, of the span (and of the step)
//     over a warp's channels    weights: gradient of C      weights: gradient of B
//
//   sums      --elementwise: 4 parts added--> global du, ddelta, dz; part_dt
//   weights   --the 8 warps added-----------> global part_C, part_B, a row for each block
#pragma once
#include "selective_sum.cuh"

namespace lrnnx::cuda {

constexpr int kBackThreads = 256;

template <class E, int RULE>
struct alignas(16) BackShared {
  static constexpr bool STEP = rules::kSplit<rules::Of<RULE>>;
  static constexpr int C = kBlockOf, T = kStepsKept, SUM = T * C + 8;
  float B[T * kSlice], C_[T * kSlice];
  float2 x[T * C];                                // span, drive
  float dy[T * C], step[STEP ? T * C : 4];
  float weights[8 * 2 * ChannelSums<E>::SIZE];    // sums of C, B by warp
  float sums[(STEP ? 4 : 3) * kParts * SUM];      // y, gradients of u, span, step: [which][part][step][channel]
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

}  // namespace lrnnx::cuda
