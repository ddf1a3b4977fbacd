// The scan h = a h + x along time, forward, or its adjoint c = conj(a) (g + c), channels last.
//
// A group is one batch element and a tile of C channels. J blocks share a group: block j owns chunks j, j + J,
// j + 2J, ... of TC steps, so that blocks walk one compact region of memory. For each chunk a block
//   1. copies the tile asynchronously into a queue of ST stages, see queue.cuh;
//   2. reduces its K steps to an affine map c -> A c + H, combines the maps of a warp by shuffles and those of the
//      warps through shared memory, and publishes the chunk's map in global memory;
//   3. finds the state that enters: it knows the state after its own previous chunk and needs only the maps of the
//      J - 1 chunks in between, which depend on no state, so no serial chain runs through the blocks. They are
//      folded in a fixed order, so that results repeat bit for bit;
//   4. replays its K steps from there, stores, and refills its slots of the queue.
// With LEAD, step 2 of the next chunk comes before step 3 of this one, which hides the time of the exchange.
//
// A group at a toy size: 32 steps, J = 2 blocks, chunks of TC = 8 steps, a block of NW = 2 warps of WT = 2 rows, K = 2.
//
//   step       0 .. 7      8 .. 15     16 .. 23    24 .. 31
//              chunk 0     chunk 1     chunk 2     chunk 3      each over the tile's C channels
//              block 0     block 1     block 0     block 1
//
//   chunk 2    16 17   18 19 | 20 21   22 23      a row: CL lanes, the same K steps; V channels a lane
//              row 0   row 1 | row 2   row 3
//              warp 0        | warp 1
//
//   registers       of a lane: the map (A, H) of its K steps; `carry`, the state after this block's last chunk, here 0
//   shared memory   the queue of inputs; `totals`, a map for each warp; `between`, the maps of chunks in between, here 1
//   global memory   `maps`, a map for each chunk; its block writes it once, the other J - 1 blocks read it
//
//   enters chunk 2:  map of chunk 1 (from `between`) applied to `carry`              the last warp, handed by `entering`
//   enters row 3:    map of row 2 (by shuffle) after that of warp 0 (from `totals`)  each lane
//
// Progress: blocks of a group wait for each other, so with J > 1 the launch is cooperative. The driver then starts
// all blocks or none, whatever else runs on the GPU. With J = 1 nothing waits.
#pragma once
#include <cooperative_groups.h>

#include "queue.cuh"

namespace lrnnx::cuda {

template <class G>
struct Walk : Queue<G> {
  using Base = Queue<G>;
  using typename Base::E, typename Base::S, typename Base::X, typename Base::In, typename Base::Place;
  using Base::p, Base::tid, Base::cl, Base::row_of_block, Base::jg, Base::j, Base::n;
  using Base::PL, Base::V, Base::C, Base::K, Base::ST, Base::TH, Base::NV, Base::CL, Base::TS;
  using Base::BWD, Base::MASKED, Base::TIMED;
  using Base::cells, Base::place, Base::live, Base::step, Base::time, Base::offset, Base::onward, Base::slot;
  using Base::fetch, Base::value, Base::inputs, Base::state, Base::keep_state, Base::store, Base::write_back;
  static constexpr int WT = G::WT, NW = G::NW, TC = G::TC, AC = G::AC, AW = G::AW, Q = G::Q, SV = G::SV;
  using Src = typename G::Src;
  static constexpr bool CONSTANT = Src::CONSTANT, SUMS = CONSTANT || MASKED || TIMED;  // SUMS: over time, if sum_a
  static constexpr bool HANDED = G::HANDED;

  struct Map {  // c -> A c + H
    X A, H;
  };

  S* totals;     // [3][NW][AW][C]: maps of warps; three, since a slow warp may still read the last one
  S* between;    // [J-1][AW][C]: maps of the chunks in between
  S* entering;   // [2][PL][C]: state that enters the chunk; two, since a slow warp may still read the last one
  int warp, row_of_warp;
  Src source;
  X over_thread, over_rows, over_warp, over_chunk;  // CONSTANT: coefficient to the power of so many steps
  X carry, sum;                                     // state after this block's previous chunk; sum over time
  X kept_a[Src::KEEP_A ? K : 1], kept_x[Src::KEEP_X ? K : 1];

  DEVICE Walk(const Params& p_, unsigned char* shared) : Base(p_, shared) {
    totals = Base::end();
    between = totals + 3 * NW * AW * C;
    entering = between + (p.J - 1) * AW * C;
    warp = tid >> 5;
    row_of_warp = (tid & 31) / CL;
    carry = sum = X{};
  }

  // ---- a step ----
  DEVICE static X held(const In& in, const X& a) {
    return MASKED && in.mode & kHold ? real_number<S, PL, V>(1) : a;
  }
  // Where a sequence begins nothing is carried, NaN neither.
  DEVICE static X cut(const In& in, const X& x) { return unless(MASKED && in.mode & kCut, x); }
  // What the recurrence adds at this step. A held step (beyond the length) adds nothing, but its state has a gradient.
  DEVICE X drive(const In& in, const X& a, int st, int k) const {
    const X x = value(st, k, 0);
    if constexpr (BWD) return x;
    return unless(MASKED && in.mode & kHold, source.drive(in, a, x));
  }
  // The new state; backward c becomes the gradient of the drive, and conj(a) times it is the new state.
  DEVICE static X advance(const In& in, const X& a, const X& x, X& c) {
    if constexpr (!BWD) return mad(a, cut(in, c), x);
    c = add(c, x);
    return cut(in, mul(a, c));
  }
  // A c + H of a map; over a sequence's start A is 0.
  DEVICE static X carried(const X& A, const X& c, const X& H) {
    if constexpr (MASKED) return mad_unless_0(A, c, H);
    return mad(A, c, H);
  }

  // ---- maps in shared and global memory ----
  DEVICE S* map_of(int b, int chunk) const {
    return static_cast<S*>(const_cast<void*>(p.maps)) +
           (int64_t(b * p.tiles + jg % p.tiles) * p.nper * p.J + chunk) * AW * C + cl * V;
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
  template <bool FAR>
  DEVICE void fold(int st, X& A, X& H) {
    UNROLL for (int k = 0; k < K; k++) {
      In in = inputs(st, k);
      const X raw = source.template at<FAR>(in), a = held(in, raw), x = drive(in, raw, st, k);
      if constexpr (Src::KEEP_A) kept_a[k] = raw;
      if constexpr (Src::KEEP_X) kept_x[k] = x;
      H = k > 0 ? advance(in, a, x, H) : BWD ? cut(in, mul(a, x)) : x;
      if constexpr (!CONSTANT) A = cut(in, k == 0 ? a : mul(a, A));
      if constexpr (MASKED) pin(A);  // put off to the next step, ptxas 13.0 has read that one's mode for it
    }
  }
  // The compiler may not move the computation of x to a later place.
  DEVICE static void pin(X& x) {
    UNROLL for (int e = 0; e < PL * V; e++) {
      if constexpr (sizeof(S) == 4) asm volatile("" : "+f"(x.v[e / V][e % V]));
      else asm volatile("" : "+d"(x.v[e / V][e % V]));
    }
  }
  DEVICE bool far(int st) const {
    bool any = false;
    UNROLL for (int k = 0; k < K; k++) any |= source.far(inputs(st, k));
    return any;
  }
  DEVICE void reduce(const Place& at, int st, int i, Map& before, Map& whole) {
    X A, H;
    far(st) ? fold<true>(st, A, H) : fold<false>(st, A, H);
    if constexpr (CONSTANT) A = over_thread;
    UNROLL for (int d = 1; d < WT; d *= 2) {
      const X H2 = shuffle_up(H, d * CL), A2 = CONSTANT ? A : shuffle_up(A, d * CL);
      if (row_of_warp >= d) H = carried(A, H2, H);
      if (CONSTANT || row_of_warp >= d) A = carried(A, A2, X{});
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
      whole.H = carried(A, whole.H, get(warps + w * AW * C, AC));
      if constexpr (!CONSTANT) whole.A = carried(A, whole.A, X{});
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
      if constexpr (HANDED) {
        c = at.turn == 0 ? state(p.first, at.b) : get(entering + (i + 1) % 2 * PL * C, 0);
        for (int w = 0; w < warp; w++) c = carried(get_A(warps + w * AW * C, over_warp), c, get(warps + w * AW * C, AC));
      } else {
        if (at.turn == 0) m = state(p.first, at.b);
        UNROLL for (int w = 0; w < NW; w++) {
          if (w == warp) c = m;
          m = carried(get_A(warps + w * AW * C, over_warp), m, get(warps + w * AW * C, AC));
        }
        carry = m;
      }
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
          m = carried(get_A(between + d * AW * C, over_chunk), m, get(between + d * AW * C, AC));
        if (row_of_warp == 0) put(entering, 0, m);
        carry = carried(whole.A, m, whole.H);
      }
      __syncthreads();
      c = get(entering, 0);
      for (int w = 0; w < warp; w++) c = carried(get_A(warps + w * AW * C, over_warp), c, get(warps + w * AW * C, AC));
    }
    return row_of_warp > 0 ? carried(before.A, c, before.H) : c;
  }

  // ---- 4: replay ----
  DEVICE void replay(const Place& at, int st, int i, X c) {
    const int last = p.T - 1 - step(at, 0);
    if (last >= 0 && last < K) finish(at, st, c, last);
    int64_t off = offset(at.b, time(step(at, 0)));
    UNROLL for (int k = 0; k < K; k++, off += onward()) {
      const bool ok = k <= last && n < p.N;
      In in = inputs(st, k);
      const X raw = Src::KEEP_A ? kept_a[Src::KEEP_A ? k : 0] : source.template at<true>(in);
      const X x = Src::KEEP_X ? kept_x[Src::KEEP_X ? k : 0] : drive(in, raw, st, k);
      const X next = advance(in, held(in, raw), x, c);
      if constexpr (BWD) gradients(at, st, k, off, k <= last, in, raw, c, next);
      else store(p.y, off, st, k, 0, ok, next);
      c = next;
    }
    if constexpr (HANDED)
      if (p.J == 1 && row_of_block == TS - 1) put(entering + i % 2 * PL * C, 0, c);  // the next chunk starts from it
    if (!p.aligned) write_back(at, st, last);
  }
  DEVICE void gradients(
      const Place& at, int st, int k, int64_t off, bool inside, const In& in, const X& a, X g, const X& next) {
    X h = value(st, k, NV - PL), da[2];
    S along = 0;
    if constexpr (MASKED) {
      h = unless(in.mode & (kHold | kCut), h);
      g = unless(in.mode & kHold, g);
    }
    const bool ok = inside && n < p.N;
    store(p.y, off, st, k, 0, ok, source.backward(in, a, g, next, h, da, sum, along));
    UNROLL for (int o = 0; o < Src::OUT; o++) {
      if (SUMS && !TIMED && p.sum_a) sum = add(sum, da[o]);
      else store(p.da[o], off, st, k, PL * (1 + o), ok, da[o]);
    }
    if constexpr (TIMED) {
      if (p.part_dt) sum_channels(at, step(at, k), inside, along);
    }
  }
  DEVICE void sum_channels(const Place& at, int r, bool inside, S along) const {
    UNROLL for (int d = 1; d < CL; d *= 2) along += __shfl_xor_sync(~0u, along, d);
    const int64_t tile = p.n0 / C + jg % p.tiles;
    if (cl == 0 && inside) static_cast<S*>(p.part_dt)[(tile * p.B + at.b) * p.T + time(r)] = along;
  }
  // What only the last step does: the state leaves; backward, the state before it is the initial one.
  DEVICE void finish(const Place& at, int st, X c, int last) {
#pragma unroll 1
    for (int k = 0; k <= last; k++) {
      In in = inputs(st, k);
      const X a = source.template at<true>(in);
      c = advance(in, held(in, a), drive(in, a, st, k), c);
    }
    keep_state(p.last, at.b, c);
    if constexpr (BWD) {
      const X h0 = state(p.h0, at.b);
      UNROLL for (int pl = 0; pl < PL; pl++) *slot(st, last, NV - PL + pl) = Storage<E>::pack(h0.v[pl]);
    }
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
      if (lead) Base::template wait<(ST > 2 ? ST - 2 : 0)>();
      else Base::template wait<ST - 1>();
      if (ahead < count) {
        const Place next = place(ahead);
        const int its = i < 0 || !lead ? st : st + 1 < ST ? st + 1 : 0;
        if (live(next)) reduce(next, its, ahead, next_before, next_whole);
      }
      if (!lead) {
        before = next_before;
        whole = next_whole;
      }
      if (busy) replay(now, st, i, enter(now, i, before, whole, words, looked));
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
    S* const rows = reinterpret_cast<S*>(cells);  // [TS][PL][C]
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
