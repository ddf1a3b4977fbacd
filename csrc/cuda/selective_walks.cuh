// The walks of selective_launch.h; an instance file names those that it compiles.
//
// Time cut into 3 segments. Each walk is one launch, with a block for each tile of channels, sequence and segment:
//
//   segment          0                 1                 2
//   forward
//     walk_states    decay and end     decay and end     -                 -> ahead
//     walk_output    h0                0 folded in       0 and 1 folded    <- state that enters; -> y, last, kept
//   backward
//     walk_reverse   -                 decay and end     decay and end     -> behind, of the state's gradient
//     walk_back      2 and 1 folded    2 folded          grad_last         <- gradient that enters; -> du, .., part_*
//     finish_*       one thread for each sum adds the partial sums of blocks, always in the same order
//
// With one segment walk_states and walk_reverse have nothing to do. Without kept states, the backward pass first
// runs walk_states again, now to keep the state before every 8th step.
#pragma once
#include "selective_backward.cuh"
#include "selective_launch.h"

namespace lrnnx::cuda {

template <class E, int PL, int RULE, int MODE>
void start_scan(const Selective& p, int segments, cudaStream_t stream) {
  if (segments == 0) return;
  const bool pads = MODE != kReverse && p.saved;
  const int tiles = pads ? tiles_of(p, kBlockOf) * (kBlockOf / kScanChannels) : tiles_of(p, kScanChannels);
  const dim3 grid(p.groups * tiles, p.batch, segments);
  constexpr int64_t bytes = sizeof(typename SelectiveScan<E, PL, RULE, MODE>::Shared);
  static_assert(bytes <= 99 << 10, "every GPU has as much");
  start(selective_scan_kernel<E, PL, RULE, MODE>, grid, kScanThreads, bytes, stream, p);
}

template <class E, int PL>
void walk_output(const Selective& p, int rule, cudaStream_t stream) {
  by_rule(rule, [&](auto r) { start_scan<E, PL, decltype(r)::value, kOutput>(p, p.segments, stream); });
}

// Decay and end state of each segment but the last; or, if `saved` is given, the states to be kept.
template <class E, int PL>
void walk_states(const Selective& p, int rule, cudaStream_t stream) {
  const int segments = p.saved ? p.segments : p.segments - 1;
  by_rule(rule, [&](auto r) { start_scan<E, PL, decltype(r)::value, kStates>(p, segments, stream); });
}

template <class E, int PL>
void walk_reverse(const Selective& p, int rule, cudaStream_t stream) {
  by_rule(rule, [&](auto r) { start_scan<E, PL, decltype(r)::value, kReverse>(p, p.segments - 1, stream); });
}

inline dim3 threads_for(int64_t count) { return dim3(static_cast<unsigned>((count + 255) / 256)); }

template <class E, int PL>
void walk_back(const Selective& p, int rule, cudaStream_t stream) {
  const int blocks = p.groups * tiles_of(p, kBlockOf);
  by_rule(rule, [&](auto r) {
    constexpr int RULE = decltype(r)::value;
    static_assert(sizeof(BackShared<E, RULE>) <= 99 << 10, "every GPU has as much");
    start(selective_backward_kernel<E, PL, RULE>, dim3(blocks, p.batch, p.segments), kBackThreads,
          sizeof(BackShared<E, RULE>), stream, p);
  });
  WeightSums sums{{p.part_B, p.part_C}, {p.dB, p.dC}, {p.B.time == 0, p.C.time == 0}, {}};
  sums.tiles = blocks / p.groups;
  sums.groups = p.groups;
  sums.slices = p.slices;
  sums.states = p.states;
  int64_t most = 0;
  for (int which = 0; which < 2; which++) {
    sums.rows[which] = int64_t(p.batch) * (sums.everywhere[which] ? p.segments * kStepsKept : p.time);
    most = std::max(most, sums.everywhere[which] ? 1 : sums.rows[which]);
  }
  dim3 grid = threads_for(most * p.groups * p.slices * kParts);
  grid.y = 2;
  start(finish_weights<E, PL>, grid, 256, 0, stream, sums);
  start(finish_channels<PL>, threads_for(int64_t(p.slices * kSlice + 2) * p.channels), 256, 0, stream, p);
  const int64_t elements = int64_t(p.batch) * p.time;
  const float* const part = p.part_dt;
  if (p.dt) start(finish_elapsed<float>, threads_for(elements), 256, 0, stream, part, p.ddt, elements, blocks);
}

}  // namespace lrnnx::cuda
