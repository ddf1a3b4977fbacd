// What a block reads: chunks of a sequence, copied asynchronously into a queue of ST stages ahead of their use.
// A thread copies exactly the K steps x V channels that it reads, so its part of the queue needs no barrier; modes
// and times are copied by the first lane of a row, whose lanes are of one warp.
//
// At a toy size: ST = 3 stages, K = 2 steps, TH = 8 threads in TS = 4 rows of CL = 2 lanes, V = 4 channels each.
//
//   this block's chunk   i            i + 1       i + 2
//   stage                0            1           2            all are copied from global to shared memory ahead of use
//                        in use       arriving    arriving     stage 0 is refilled with chunk i + 3 when i is done
//
//   a stage   step 0   x | t0 t1 | t2 t3 | t4 t5 | t6 t7 |     16 bytes a thread, which alone uses them
//                      a | t0 t1 | t2 t3 | t4 t5 | t6 t7 |     a, or what a source makes it from; backward the states too
//             step 1   x | ..                                  thread t3: row 1 = steps 2 and 3 of the chunk,
//                      a | ..                                  lane 1 = channels 4 to 7 of the tile
//             mode     |  r0   |  r1   |  r2   |  r3   |       and the elapsed time: one number for a step and row
#pragma once
#include "memory.cuh"
#include "shape.h"

namespace lrnnx::cuda {

template <class G>
struct Queue {
  using Src = typename G::Src;
  using E = typename G::E;
  using S = typename G::S;
  using X = typename G::X;
  using In = typename Src::In;
  static constexpr int PL = G::PL, V = G::V, C = G::C, K = G::K, ST = G::ST, TH = G::TH, NV = G::NV, CL = G::CL, TS = G::TS;
  static constexpr bool BWD = G::BWD, MASKED = G::MASKED, TIMED = Src::TIMED, MODES = G::MODES;

  struct Place {  // a chunk: batch element, turn of this block, index in the group
    int b, turn, chunk;
  };

  const Params& p;
  uint4* cells;  // [ST][K][NV][TH]
  int* modes;    // [ST][K][TS], if MODES
  S* steps;      // [ST][K][TS], if TIMED
  int tid, cl, row_of_block, jg, j, n;

  DEVICE Queue(const Params& p_, unsigned char* shared) : p(p_) {
    cells = reinterpret_cast<uint4*>(shared);
    modes = reinterpret_cast<int*>(cells + size_t(ST) * K * NV * TH);
    steps = reinterpret_cast<S*>(modes + (MODES ? ST * K * TS : 0));
    tid = threadIdx.x;
    cl = tid % CL;
    row_of_block = tid / CL;
    jg = blockIdx.x % p.groups;
    j = blockIdx.x / p.groups;
    n = p.n0 + jg % p.tiles * C + cl * V;
  }
  DEVICE S* end() const { return steps + (TIMED ? ST * K * TS : 0); }

  // ---- addresses ----
  DEVICE Place place(int i) const {
    const int round = i / p.nper, turn = i - round * p.nper;
    return {(round * p.groups + jg) / p.tiles, turn, turn * p.J + j};
  }
  DEVICE bool live(const Place& at) const { return at.b < p.B && at.chunk * G::TC < p.T; }
  DEVICE int step(const Place& at, int k) const { return at.chunk * G::TC + row_of_block * K + k; }
  DEVICE int time(int r) const { return p.flip ? p.T - 1 - r : r; }
  DEVICE int64_t offset(int b, int t) const { return (int64_t(b) * p.T + t) * PL * p.N + n; }
  DEVICE int64_t onward() const { return int64_t(p.flip ? -PL : PL) * p.N; }  // from a step to the next
  DEVICE uint4* slot(int st, int k, int vector) const { return cells + ((st * K + k) * NV + vector) * TH + tid; }

  // ---- filling ----
  DEVICE void fetch_row(int st, int k, int first, const void* base, int64_t at, bool ok) {
    UNROLL for (int pl = 0; pl < PL; pl++) {
      const E* const row = static_cast<const E*>(base) + (ok ? at + int64_t(pl) * p.N : 0);
      uint4* const to = slot(st, k, first + pl);
      if (p.aligned) copy16(shared_address(to), row, ok);
      else *to = gather(row, ok ? p.N - n : 0);
    }
  }
  // `off` and `a_off` are where step r lies in x and in a.
  DEVICE void fetch_step(int b, int r, int64_t off, int64_t a_off, int st, int k) {
    const bool ok = b < p.B && r < p.T && n < p.N;
    fetch_row(st, k, 0, p.x, off, ok);
    if constexpr (Src::STRIDED) fetch_row(st, k, PL, p.a, a_off, ok);
    else UNROLL for (int e = 0; e < Src::EXTRA; e++) fetch_row(st, k, PL * (1 + e), p.extra[e], off, ok);
    if constexpr (BWD) fetch_row(st, k, NV - PL, p.states, off + onward(), ok && r < p.T - 1);
    const int64_t cell = ok ? int64_t(b) * p.T + time(r) : 0;
    const int row = (st * K + k) * TS + row_of_block;
    if constexpr (MODES) {
      if (p.mode && cl == 0) copy_one(modes + row, p.mode + cell, ok);
    }
    if constexpr (TIMED) {
      if (p.dt && cl == 0) copy_one(steps + row, static_cast<const S*>(p.dt) + cell, ok);
    }
  }
  DEVICE void fetch(int i, int st) {
    if constexpr (MODES || TIMED) __syncwarp();  // all lanes of a row have read the old modes and times
    if (i < p.rounds * p.nper) {
      const Place at = place(i);
      const int r = step(at, 0);
      const int64_t off = offset(at.b, time(r)), a_off = at.b * p.a_batch + time(r) * p.a_time + n;
      const int64_t onward_a = p.flip ? -p.a_time : p.a_time;
      if (p.aligned) {
        UNROLL for (int k = 0; k < K; k++) fetch_step(at.b, r + k, off + k * onward(), a_off + k * onward_a, st, k);
      } else {
#pragma unroll 1
        for (int k = 0; k < K; k++) fetch_step(at.b, r + k, off + k * onward(), a_off + k * onward_a, st, k);
      }
    }
    commit_copies();  // always one, so that groups count stages
  }

  // ---- reading ----
  template <int pending>
  DEVICE void wait() const {
    wait_copies<pending>();
    if constexpr (MODES || TIMED) __syncwarp();
  }
  DEVICE X value(int st, int k, int first) const {
    X r;
    UNROLL for (int pl = 0; pl < PL; pl++) Storage<E>::unpack(*slot(st, k, first + pl), r.v[pl]);
    return r;
  }
  // Steps beyond a row's end show zeros and a time of 1, whatever lies there.
  DEVICE In inputs(int st, int k) const {
    const int row = (st * K + k) * TS + row_of_block;
    In in;
    in.mode = kPlain;
    in.dt = 1;
    if constexpr (MODES) in.mode = p.mode ? modes[row] : kPlain;
    if constexpr (TIMED) in.dt = p.dt && !(MASKED && in.mode & kHold) ? steps[row] : S(1);
    UNROLL for (int e = 0; e < Src::EXTRA; e++)
      in.raw[e] = unless(MASKED && in.mode & kHold, value(st, k, PL * (1 + e)));
    return in;
  }

  // ---- small states (B, PL, N) ----
  DEVICE X state(const void* from, int b) const {
    return from ? channel_values<S, PL, V>(static_cast<const S*>(from) + int64_t(b) * PL * p.N, n, p.N) : X{};
  }
  DEVICE void keep_state(void* to, int b, const X& x) const {
    UNROLL for (int e = 0; e < PL * V; e++)
      if (n + e % V < p.N) static_cast<S*>(to)[(int64_t(b) * PL + e / V) * p.N + n + e % V] = x.v[e / V][e % V];
  }

  // ---- writing: rows that are not aligned wait in the queue for `write_back`, so that unrolled loops stay short ----
  DEVICE void store(void* to, int64_t off, int st, int k, int first, bool ok, const X& x) {
    UNROLL for (int pl = 0; pl < PL; pl++) {
      const uint4 bits = Storage<E>::pack(x.v[pl]);
      if (!p.aligned) *slot(st, k, first + pl) = bits;
      else if (ok) *reinterpret_cast<uint4*>(static_cast<E*>(to) + off + int64_t(pl) * p.N) = bits;
    }
  }
  DEVICE void write_back(const Place& at, int st, int last) {
#pragma unroll 1
    for (int k = 0; k < K && k <= last; k++) {
      const int64_t off = offset(at.b, time(step(at, k)));
      UNROLL for (int pl = 0; pl < PL; pl++) {
        scatter(static_cast<E*>(p.y) + off + int64_t(pl) * p.N, *slot(st, k, pl), p.N - n);
        UNROLL for (int o = 0; o < (BWD ? Src::OUT : 0); o++)
          if (p.da[o]) scatter(static_cast<E*>(p.da[o]) + off + int64_t(pl) * p.N, *slot(st, k, PL * (1 + o) + pl), p.N - n);
      }
    }
  }
};

}  // namespace lrnnx::cuda
