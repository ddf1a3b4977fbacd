// The shape of a kernel: how many channels, steps and stages a block works on, from the shared memory there is.
//
// Forward, real float32, coefficients that are read (Given), rows of ROW = 128 bytes, 99 KB of shared memory:
//
//             CL = 8 lanes with V = 4 channels each: C = 32 channels
//   row 0     | thread 0 | .. | thread 7 |      K = 4 steps for each thread
//   row 1     | thread 8 | ..                   a warp: WT = 4 rows; a block: NW = 8 warps, TS = 32 rows
//   ..                                          a chunk: TC = 32 rows of 4 steps = 128 steps
//   row 31    | ..          | thread 255 |
//
//   a step of a thread     NV = 2 vectors of 16 bytes, x and a
//   of all 256 threads     STEP = 8 KB; a stage of K steps: STAGE = 32 KB
//   shared memory          ST = 2 stages fill 64 KB; 3 maps for each warp take 6 KB more
#pragma once
#include "source.cuh"

#ifndef LRNNX_SHARED_KB
#define LRNNX_SHARED_KB 99  // shared memory of a block on the smallest GPU built for
#endif

namespace lrnnx::cuda {

constexpr int kThreads = 256;

constexpr int steps_for(int step_bytes, int room) {  // two stages at least
  int k = 8;
  while (k > 1 && 2 * k * step_bytes > room) k /= 2;
  return k;
}

template <class E_, int PL_, template <class, int, int, bool> class SRC, bool BWD_, bool MASKED_, int ROW>
struct Shape {
  using E = E_;
  using S = typename Storage<E>::Sum;
  static constexpr int PL = PL_, TH = kThreads, V = 16 / sizeof(E), C = ROW / sizeof(E);
  static constexpr bool BWD = BWD_, MASKED = MASKED_;  // MASKED: steps may hold the state or drop it
  using Src = SRC<S, PL, V, BWD>;
  static constexpr bool MODES = MASKED || Src::UNITS;
  // With J = 1 the last row hands its state to the next chunk. For other sources, where that was not compared on a GPU,
  // each warp folds all maps for it.
  static constexpr bool HANDED = PL == 1 && (Src::STRIDED || Src::UNITS);
  using X = Val<S, PL, V>;
  static constexpr int NV = (Src::EXTRA + 1 + BWD) * PL;           // vectors of a step and thread
  static constexpr int AC = Src::CONSTANT ? 0 : PL, AW = AC + PL;  // planes of A, and of A and H, in a map
  static constexpr int CL = C / V, WT = 32 / CL;                   // lanes of a row, rows of a warp
  static constexpr int NW = TH / 32, TS = TH / CL;                 // warps; rows of a block
  static constexpr int MAP = AW * C * int(sizeof(S));              // in bytes, as what follows
  static constexpr int STEP = TH * NV * 16 + TS * ((MODES ? 4 : 0) + (Src::TIMED ? int(sizeof(S)) : 0));
  static constexpr int ROOM = LRNNX_SHARED_KB * 1024 - 3 * NW * MAP - 1024;
  static constexpr int K = steps_for(STEP, ROOM), TC = TS * K;     // steps of a thread; steps of a chunk
  static constexpr int STAGE = K * STEP, FIT = ROOM / STAGE, ST = FIT < 2 ? 2 : FIT < 4 ? FIT : 4;
  static constexpr bool LEAD = ST > 2 && !Src::KEEP_A;             // reduce a chunk ahead: hides the exchange
  static constexpr int SV = 16 / sizeof(S), Q = V / SV;  // sums in 16 bytes; 16-byte words of V sums
  static_assert(CL <= 32 && 32 % CL == 0);

  static size_t shared_bytes(int J) {
    return size_t(ST) * STAGE + size_t(3 * NW + J - 1) * MAP + size_t(HANDED ? 2 : J > 1) * sizeof(S) * C * PL;
  }
};

}  // namespace lrnnx::cuda
