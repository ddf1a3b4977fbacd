// The scan h = a h + x along time, forward, or its adjoint c = conj(a) (g + c), channels last.
//
// A group is one batch element and a tile of C channels. J blocks share a group: block j owns chunks j, j + J,
// j + 2J, ... of TC steps, so that blocks walk one compact region of memory. For each chunk a block
//   1. copies the tile asynchronously into a queue of ST stages. A thread copies exactly the K steps x V channels
//      that it reads, so the queue is private to the thread and needs no barrier;
//   2. reduces its K steps to an affine map c -> A c + H, combines the maps of a warp by shuffles and those of the
//      warps through shared memory, and publishes the chunk's map in global memory;
//   3. finds the state that enters: it knows the state after its own previous chunk and needs only the maps of the
//      J - 1 chunks in between, which depend on no state, so no serial chain runs through the blocks. They are
//      folded in a fixed order, so that results repeat bit for bit;
//   4. replays its K steps from there, stores, and refills its slots of the queue.
// With LEAD, step 2 of the next chunk comes before step 3 of this one, which hides the time of the exchange.
//
// Progress: blocks of a group wait for each other, so with J > 1 the launch is cooperative. The driver then starts
// all blocks or none, whatever else runs on the GPU. With J = 1 nothing waits.
#pragma once
#include <cooperative_groups.h>

#include "memory.cuh"
#include "shape.h"

namespace lrnnx::cuda {

template <class G>
struct Walk {
  static constexpr int PL = G::PL, V = G::V, C = G::C, K = G::K, ST = G::ST, TH = G::TH, NV = G::NV, CL = G::CL;
  static constexpr int WT = G::WT, NW = G::NW, TS = G::TS, TC = G::TC, AC = G::AC, AW = G::AW, Q = G::Q, SV = G::SV;
  static constexpr bool BWD = G::BWD, MASKED = G::MASKED, CONSTANT = G::Src::CONSTANT, READ = G::Src::READ;
  static constexpr bool TIMED = G::Src::TIMED, SUMS = CONSTANT || MASKED || TIMED;  // SUMS: da may be summed over time
  using E = typename G::E;
  using S = typename G::S;
  using X = typename G::X;

  struct Map {  // c -> A c + H
    X A, H;
  };
  struct Place {  // a chunk: batch element, turn of this block, index in the group
    int b, turn, chunk;
  };

  const Params& p;
  uint4* queue;    // [ST][K][NV][TH]
  int* modes;      // [ST][K][TH], if MASKED
  S* steps;        // [ST][K][TH], if TIMED
  S* totals;       // [3][NW][AW][C]: maps of warps; three, since a slow warp may still read the last one
  S* between;      // [J-1][AW][C]: maps of the chunks in between
  S* entering;     // [PL][C]: state that enters the chunk
  int tid, warp, cl, row_of_block, row_of_warp, jg, j, n;
  typename G::Src source;
  X over_thread, over_rows, over_warp, over_chunk;  // CONSTANT: coefficient to the power of so many steps
  X carry, sum;                                     // state after this block's previous chunk; sum of da
  X kept[TIMED ? K : 1];                            // TIMED: coefficients of this thread, made once

  DEVICE Walk(const Params& p_, unsigned char* shared) : p(p_) {
    queue = reinterpret_cast<uint4*>(shared);
    modes = reinterpret_cast<int*>(queue + size_t(ST) * K * NV * TH);
    steps = reinterpret_cast<S*>(modes + (MASKED ? ST * K * TH : 0));
    totals = steps + (TIMED ? ST * K * TH : 0);
    between = totals + 3 * NW * AW * C;
    entering = between + (p.J - 1) * AW * C;
    tid = threadIdx.x;
    warp = tid >> 5;
    cl = tid % CL;
    row_of_block = tid / CL;
    row_of_warp = (tid & 31) / CL;
    jg = blockIdx.x % p.groups;
    j = blockIdx.x / p.groups;
    n = p.n0 + jg % p.tiles * C + cl * V;
    carry = sum = X{};
  }

  // ---- addresses ----
  DEVICE Place place(int i) const {
    const int round = i / p.nper, turn = i - round * p.nper;
    return {(round * p.groups + jg) / p.tiles, turn, turn * p.J + j};
  }
  DEVICE bool live(const Place& at) const { return at.b < p.B && at.chunk * TC < p.T; }
  DEVICE int step(const Place& at, int k) const { return at.chunk * TC + row_of_block * K + k; }
  DEVICE int time(int r) const { return p.flip ? p.T - 1 - r : r; }
  DEVICE int64_t offset(int b, int t) const { return (int64_t(b) * p.T + t) * PL * p.N + n; }
  DEVICE int64_t onward() const { return int64_t(p.flip ? -PL : PL) * p.N; }  // from a step to the next
  DEVICE uint4* slot(int st, int k, int vector) const { return queue + ((st * K + k) * NV + vector) * TH + tid; }
  DEVICE S* map_of(int b, int chunk) const {
    return static_cast<S*>(const_cast<void*>(p.maps)) +
           (int64_t(b * p.tiles + jg % p.tiles) * p.nper * p.J + chunk) * AW * C + cl * V;
  }

  // ---- the queue ----
  DEVICE void fetch_row(int st, int k, int first, const E* from, int64_t at, bool ok) {
    UNROLL for (int pl = 0; pl < PL; pl++) {
      const E* const row = from + (ok ? at + int64_t(pl) * p.N : 0);
      uint4* const to = slot(st, k, first + pl);
      if (p.aligned) copy16(shared_address(to), row, ok);
      else *to = gather(row, ok ? p.N - n : 0);
    }
  }
  // `off` and `a_off` are where step r lies in x and in a.
  DEVICE void fetch_step(int b, int r, int64_t off, int64_t a_off, int st, int k) {
    const bool ok = b < p.B && r < p.T && n < p.N;
    fetch_row(st, k, 0, static_cast<const E*>(p.x), off, ok);
    if constexpr (READ) fetch_row(st, k, PL, static_cast<const E*>(p.a), a_off, ok);
    if constexpr (BWD) fetch_row(st, k, NV - PL, static_cast<const E*>(p.states), off + onward(), ok && r < p.T - 1);
    const int64_t cell = ok ? int64_t(b) * p.T + time(r) : 0;
    const int own = (st * K + k) * TH + tid;
    if constexpr (MASKED) copy4(shared_address(modes + own), p.mode + cell, ok);
    if constexpr (TIMED) copy_one(steps + own, static_cast<const S*>(p.dt) + cell, ok);
  }
  DEVICE void fetch(int i, int st) {
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
  DEVICE X value(int st, int k, int first) const {
    X r;
    UNROLL for (int pl = 0; pl < PL; pl++) Storage<E>::unpack(*slot(st, k, first + pl), r.v[pl]);
    return r;
  }
  DEVICE int mode(int st, int k) const {
    if constexpr (MASKED) return modes[(st * K + k) * TH + tid];
    return kPlain;
  }
  DEVICE X coefficient(int st, int k) const {
    X raw{};
    if constexpr (READ) raw = value(st, k, PL);
    S dt = 0;
    if constexpr (TIMED) dt = steps[(st * K + k) * TH + tid];
    X a = source.at(raw, dt);
    if constexpr (MASKED) {
      const int m = mode(st, k);
      if (m == kHold) a = real_number<S, PL, V>(1);
      a = unless(m == kCut, a);
    }
    return a;
  }
  // What enters the recurrence; a held step takes no drive, but its state has a gradient.
  DEVICE X drive(int st, int k) const {
    const X x = value(st, k, 0);
    return MASKED && !BWD ? unless(mode(st, k) == kHold, x) : x;
  }

  // ---- small states in global and maps in shared memory ----
  DEVICE X state(const void* from, int b) const {
    X r{};
    if (from)
      UNROLL for (int e = 0; e < PL * V; e++)
        if (n + e % V < p.N) r.v[e / V][e % V] = static_cast<const S*>(from)[(int64_t(b) * PL + e / V) * p.N + n + e % V];
    return r;
  }
  DEVICE void keep_state(void* to, int b, const X& x) const {
    UNROLL for (int e = 0; e < PL * V; e++)
      if (n + e % V < p.N) static_cast<S*>(to)[(int64_t(b) * PL + e / V) * p.N + n + e % V] = x.v[e / V][e % V];
  }
  DEVICE X get(const S* base, int plane) const {
    X r;
    UNROLL for (int e = 0; e < PL * V; e += SV)
      *reinterpret_cast<uint4*>(&r.v[e / V][e % V]) =
          *reinterpret_cast<const uint4*>(base + (plane + e / V) * C + cl * V + e % V);
    return r;
  }
  DEVICE void put(S* base, int plane, const X& x) const {
    UNROLL for (int e = 0; e < PL * V; e += SV)
      *reinterpret_cast<uint4*>(base + (plane + e / V) * C + cl * V + e % V) =
          *reinterpret_cast<const uint4*>(&x.v[e / V][e % V]);
  }
  DEVICE X get_A(const S* base, const X& constant) const {
    if constexpr (CONSTANT) return constant;
    else return get(base, 0);
  }

  // ---- 2: reduce. `before` becomes the map of the rows before this one in its warp, `whole` that of the chunk ----
  DEVICE void reduce(const Place& at, int st, int i, Map& before, Map& whole) {
    X A, H;
    UNROLL for (int k = 0; k < K; k++) {
      const X a = coefficient(st, k), x = drive(st, k);
      if constexpr (TIMED) kept[k] = a;
      H = k == 0 ? (BWD ? mul(a, x) : x) : BWD ? mul(a, add(H, x)) : mad(a, H, x);
      if constexpr (!CONSTANT) A = k == 0 ? a : mul(a, A);
    }
    if constexpr (CONSTANT) A = over_thread;
    UNROLL for (int d = 1; d < WT; d *= 2) {
      const X H2 = shuffle_up(H, d * CL), A2 = CONSTANT ? A : shuffle_up(A, d * CL);
      if (row_of_warp >= d) H = mad(A, H2, H);
      if (CONSTANT || row_of_warp >= d) A = mul(A, A2);
    }
    before.H = shuffle_up(H, CL & 31);
    before.A = CONSTANT ? over_rows : shuffle_up(A, CL & 31);
    S* const mine = totals + (i % 3) * NW * AW * C;
    if (row_of_warp == WT - 1) {
      if constexpr (!CONSTANT) put(mine + warp * AW * C, 0, A);
      put(mine + warp * AW * C, AC, H);
    }
    __syncthreads();
    if (p.J > 1 && warp == NW - 1) announce(at, mine, whole);
  }
  DEVICE void announce(const Place& at, const S* warps, Map& whole) {
    whole = {get_A(warps, over_warp), get(warps, AC)};
    UNROLL for (int w = 1; w < NW; w++) {
      const X A = get_A(warps + w * AW * C, over_warp);
      whole.H = mad(A, whole.H, get(warps + w * AW * C, AC));
      if constexpr (!CONSTANT) whole.A = mul(A, whole.A);
    }
    if constexpr (CONSTANT) whole.A = over_chunk;
    S* const to = map_of(at.b, at.chunk);
    if (row_of_warp == 0)
      UNROLL for (int e = 0; e < PL * V; e += SV) {
        if constexpr (!CONSTANT) publish(to + e / V * C + e % V, &whole.A.v[e / V][e % V]);
        publish(to + (AC + e / V) * C + e % V, &whole.H.v[e / V][e % V]);
      }
  }

  // ---- 3: the state that enters this thread's steps ----
  struct Words {
    uint4 u[AW * Q];
  };
  DEVICE Words look(const Place& at, int distance) const {
    Words words;
    const S* const from = map_of(at.b, at.chunk - 1 - distance);
    UNROLL for (int e = 0; e < AW * Q; e++) words.u[e] = peek(from + e / Q * C + e % Q * SV);
    return words;
  }
  DEVICE static bool seen(const Words& words) {
    bool ok = true;
    UNROLL for (int e = 0; e < AW * Q; e++) ok &= ready(words.u[e]);
    return ok;
  }
  DEVICE X enter(const Place& at, int i, const Map& before, const Map& whole, Words words, bool looked) {
    const S* const warps = totals + (i % 3) * NW * AW * C;
    X c{}, m = carry;
    if (p.J == 1) {
      if (at.turn == 0) m = state(p.first, at.b);
      UNROLL for (int w = 0; w < NW; w++) {
        if (w == warp) c = m;
        m = mad(get_A(warps + w * AW * C, over_warp), m, get(warps + w * AW * C, AC));
      }
      carry = m;
    } else {
      const int count = min(p.J - 1, at.chunk);
      for (int d = row_of_block; d < count; d += TS) {
        if (!looked || d != row_of_block) words = look(at, d);
        while (!seen(words)) words = look(at, d);
        UNROLL for (int e = 0; e < AW * Q; e++)
          *reinterpret_cast<uint4*>(between + (d * AW + e / Q) * C + cl * V + e % Q * SV) = words.u[e];
      }
      __syncthreads();
      if (warp == NW - 1) {
        if (at.turn == 0) m = state(p.first, at.b);
        for (int d = count - 1; d >= 0; d--)
          m = mad(get_A(between + d * AW * C, over_chunk), m, get(between + d * AW * C, AC));
        if (row_of_warp == 0) put(entering, 0, m);
        carry = mad(whole.A, m, whole.H);
      }
      __syncthreads();
      c = get(entering, 0);
      for (int w = 0; w < warp; w++) c = mad(get_A(warps + w * AW * C, over_warp), c, get(warps + w * AW * C, AC));
    }
    return row_of_warp > 0 ? mad(before.A, c, before.H) : c;
  }

  // ---- 4: replay ----
  // Rows that are not aligned wait in the queue for `write_back`, so that the unrolled loop stays short.
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
        if constexpr (BWD && READ)
          if (!p.sum_a && k != last) scatter(static_cast<E*>(p.da) + off + int64_t(pl) * p.N, *slot(st, k, PL + pl), p.N - n);
      }
    }
  }
  // One step: the new state, and backward the gradient g of the drive.
  DEVICE X advance(const X& a, int st, int k, const X& c, X& g) const {
    if constexpr (!BWD) return mad(a, c, drive(st, k));
    g = add(c, drive(st, k));
    return mul(a, g);
  }
  DEVICE void replay(const Place& at, int st, X c) {
    const int last = p.T - 1 - step(at, 0);
    S first = 0;  // TIMED: what the initial state adds to the gradient of dt
    if (last >= 0 && last < K) first = finish(at, st, c, last);
    int64_t off = offset(at.b, time(step(at, 0)));
    UNROLL for (int k = 0; k < K; k++, off += onward()) {
      const bool ok = k <= last && n < p.N;
      X g;
      const X next = advance(TIMED ? kept[TIMED ? k : 0] : coefficient(st, k), st, k, c, g);
      if constexpr (BWD) {
        X h = value(st, k, NV - PL);  // zero at the last step, which `finish` sees to
        if constexpr (MASKED) {
          h = unless(mode(st, k) != kPlain, h);
          g = unless(mode(st, k) == kHold, g);
        }
        store(p.y, off, st, k, 0, ok, g);
        if constexpr (TIMED) sum_timed(at, st, k, k <= last, mul(next, conj(h)), k == last ? first : S(0));
        else if constexpr (SUMS)
          if (p.sum_a && ok) sum = mad(g, conj(h), sum);
        if constexpr (READ)
          if (!SUMS || !p.sum_a) store(p.da, off, st, k, PL, ok && k != last, mul(g, conj(h)));
      } else {
        store(p.y, off, st, k, 0, ok, next);
      }
      c = next;
    }
    if (!p.aligned) write_back(at, st, last);
  }
  // With q = conj(a) g conj(h), the gradient of z is the sum of q dt, and that of dt is Re(q conj(z)) over channels.
  DEVICE void sum_timed(const Place& at, int st, int k, bool inside, const X& q, S more) {
    const S dt = steps[(st * K + k) * TH + tid];
    UNROLL for (int e = 0; e < PL * V; e++) sum.v[e / V][e % V] = fma(q.v[e / V][e % V], dt, sum.v[e / V][e % V]);
    S along = source.along(q) + more;
    UNROLL for (int d = 1; d < CL; d *= 2) along += __shfl_xor_sync(~0u, along, d);
    const int64_t tile = p.n0 / C + jg % p.tiles;
    if (cl == 0 && inside) static_cast<S*>(p.part_dt)[(tile * p.B + at.b) * p.T + time(step(at, k))] = along;
  }
  // What only the last step does: the state that leaves, and backward the part of the initial state in da.
  DEVICE S finish(const Place& at, int st, X c, int last) {
    X g;
#pragma unroll 1
    for (int k = 0; k <= last; k++) c = advance(coefficient(st, k), st, k, c, g);
    keep_state(p.last, at.b, c);
    if constexpr (BWD) {
      const X h0 = state(p.h0, at.b);
      const X da = unless(MASKED && mode(st, last) != kPlain, mul(TIMED ? c : g, conj(h0)));
      if constexpr (TIMED) {
        const S dt = steps[(st * K + last) * TH + tid];
        UNROLL for (int e = 0; e < PL * V; e++) sum.v[e / V][e % V] = fma(da.v[e / V][e % V], dt, sum.v[e / V][e % V]);
        return source.along(da);
      }
      if constexpr (SUMS && !TIMED)
        if (p.sum_a) sum = add(sum, da);
      if constexpr (READ)
        if (!SUMS || !p.sum_a)
          UNROLL for (int pl = 0; pl < PL; pl++)
            scatter(static_cast<E*>(p.da) + offset(at.b, time(p.T - 1)) + int64_t(pl) * p.N,
                    Storage<E>::pack(da.v[pl]), p.N - n);
    }
    return S(0);
  }

  DEVICE void run() {
    const bool lead = G::LEAD && p.J > 1;
    const int count = p.rounds * p.nper;
    UNROLL for (int s = 0; s < ST; s++) fetch(s, s);
    source.init(p, n);
    if constexpr (CONSTANT) {
      over_thread = source.power(K);
      over_rows = source.power(K * row_of_warp);
      over_warp = source.power(K * WT);
      over_chunk = source.power(TC);
    }
    if (p.J > 1) {
      uint4* const maps = static_cast<uint4*>(const_cast<void*>(p.maps));
      for (int64_t i = blockIdx.x * int64_t(TH) + tid; i < p.map_vectors; i += int64_t(gridDim.x) * TH)
        maps[i] = make_uint4(kNotYet, kNotYet, kNotYet, kNotYet);
      cooperative_groups::this_grid().sync();
    }
    Map before, whole, next_before, next_whole;
    for (int i = lead ? -1 : 0, st = 0; i < count; i++) {
      const Place now = place(max(i, 0));
      const bool busy = i >= 0 && live(now);
      Words words;
      const bool looked = lead && busy && row_of_block < min(p.J - 1, now.chunk);
      if (looked) words = look(now, row_of_block);  // published an iteration ago, used after the next reduction
      const int ahead = i + lead;
      if (lead) wait_copies<(ST > 2 ? ST - 2 : 0)>();
      else wait_copies<ST - 1>();
      if (ahead < count) {
        const Place next = place(ahead);
        const int its = i < 0 || !lead ? st : st + 1 < ST ? st + 1 : 0;
        if (live(next)) reduce(next, its, ahead, next_before, next_whole);
      }
      if (!lead) {
        before = next_before;
        whole = next_whole;
      }
      if (busy) replay(now, st, enter(now, i, before, whole, words, looked));
      if (lead) {
        before = next_before;
        whole = next_whole;
      }
      if (i >= 0) {
        fetch(i + ST, st);
        st = st + 1 < ST ? st + 1 : 0;
      }
    }
    if constexpr (BWD && SUMS)
      if (p.sum_a) reduce_sum();
  }

  // The sums of this block's threads in a fixed order; one row of `part` a block and tile.
  DEVICE void reduce_sum() {
    wait_copies<0>();
    __syncthreads();
    S* const rows = reinterpret_cast<S*>(queue);  // [TS][PL][C]
    put(rows + row_of_block * PL * C, 0, sum);
    __syncthreads();
    for (int e = tid; e < PL * C; e += TH) {
      S total = 0;
      for (int row = 0; row < TS; row++) total += rows[row * PL * C + e];
      const int channel = p.n0 + jg % p.tiles * C + e % C;
      if (channel < p.N)
        static_cast<S*>(p.part)[(int64_t(blockIdx.x / p.tiles) * PL + e / C) * p.N + channel] = total;
    }
  }
};

template <class G>
__global__ void __launch_bounds__(G::TH, 1) scan(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char shared[];
  Walk<G>(p, shared).run();
}

}  // namespace lrnnx::cuda
