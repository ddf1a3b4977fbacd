// The selective scan forward, and the walks before its backward pass.
//
// Four lanes share a channel, with four numbers of its state each, so that a batch of usual size fills a GPU without
// cutting time. What is done once an element (softplus, gate, conversion, memory) is done by other lanes than the
// recurrence: each has two adjacent channels at some steps, and hands {span, drive} over in shared memory. Where there
// are few channels, time is cut into segments: a walk before finds what each does to the state that it is given, and
// the main walk folds the earlier segments in. More than 16 numbers of a state are walked slice after slice, over 32
// steps at a time, while the state of the other slices waits in shared memory.
#pragma once
#include "selective_tile.cuh"

namespace lrnnx::cuda {

// kOutput: y. kStates: h alone, to be kept every 8 steps, or only what a segment does to it. kReverse: what a segment
// does to the gradient of the state, r[t−1] = conj(a[t])·(r[t] + dy[t]·conj(C[t])): the same recurrence, time mirrored.
enum Pass { kOutput, kStates, kReverse };

constexpr int kScanThreads = 128, kScanChannels = 32, kTileSteps = 32;

extern __shared__ float4 selective_memory[];

template <class E, int PL, int RULE, int MODE>
struct SelectiveScan {
  using R = Rates<PL, RULE>;
  using X = typename R::X;
  static constexpr bool OUT = MODE == kOutput, BACK = MODE == kReverse, STEP = R::SPLIT && !BACK;
  static constexpr int C = kScanChannels, NT = kScanThreads, TILE = kTileSteps;
  static constexpr int ROWS = NT / (C / 2), PS = TILE / ROWS;             // of the elementwise role: rows at once, turns
  static constexpr int YS = C + C / kParts;                               // a row of y, without bank conflicts
  static constexpr int UNROLLED = PL == 2 ? 4 : R::SHAPED ? 8 : 16;       // more would not fit the instruction cache

  struct Shared {
    float B[2][TILE * kSlice], C[OUT ? 2 : 1][OUT ? TILE * kSlice : 4];
    float2 x[TILE * SelectiveScan::C];                                    // span, drive
    float step[STEP ? TILE * SelectiveScan::C : 4], y[OUT ? TILE * YS : 4];
  };

  const Selective p;  // a copy, whose fields the compiler knows not to change
  Shared& sm;
  const unsigned tid, part, ch;
  const int b, segment, begin;
  const Home<C> home;
  const bool inside;
  const int64_t d;
  int end, steps;
  R rates;
  X h, product;      // product of decays, unless their sum does
  float sum;         // of spans, once for each slice
  bool alive;        // no sequence started
  float* kept;       // where the state goes next that is kept for the backward pass
  // The elementwise role: channels, row, what was loaded for the next tile, and where more is read from
  const Couple couple;
  const unsigned er;
  Pair<E> xu[PS], xd[PS], xz[PS];
  float elapsed[PS];
  bool fresh;
  Quad<E> qb, qc;
  const char *at_u, *at_delta, *at_z, *at_B, *at_C;

  DEVICE SelectiveScan(const Selective& given, Shared& sm)
      : p(of_sequence(given, blockIdx.y)), sm(sm), tid(threadIdx.x), part(tid % 32 / 8),
        ch(tid / 32 * 8 + tid % 8), b(blockIdx.y),
        segment(blockIdx.z + BACK), begin(segment * p.length), home(p), inside(int(ch) < home.width), d(home.channel(ch)),
        product(R::one()), sum(0), alive(true), couple(home, tid % (C / 2) * 2), er(tid / (C / 2)), fresh(false) {
    const int64_t length = p.lengths ? min(max(p.lengths[b], int64_t(0)), int64_t(p.time)) : p.time;
    end = min(int(length), begin + p.length);
    steps = end - begin;
    const int row = at(er), pair = couple.first * int(sizeof(E)), weight_row = at(tid / kParts);
    const int states = home.group * PL * p.states * int(sizeof(E));
    at_u = row_of<char>(BACK ? p.grad : p.u, row) + pair;
    at_delta = row_of<char>(p.delta, row) + pair;
    at_z = row_of<char>(p.z, row) + pair;
    at_B = row_of<char>(BACK ? p.C : p.B, weight_row) + states;
    at_C = row_of<char>(p.C, weight_row) + states;
    UNROLL for (int i = 0; i < PS; i++) elapsed[i] = 1;
  }

  DEVICE int at(int s) const {  // step of the walk -> time
    s = min(s, steps - 1);
    return BACK ? end - 1 - s : begin + s;
  }
  DEVICE bool folds() const { return OUT || (!BACK && p.saved); }  // else it finds what a segment does
  DEVICE float4& held(int slice) const { return selective_memory[slice * NT + tid]; }
  DEVICE float* place(float* of_segments, int s, int slice, int which) const {
    return of_segments + segment_row(p, b, s, slice, which) + int64_t(part * kHeld) * p.padded + home.padded + ch;
  }
  // Where a segment's decay (0) and end state (1) go; decays of several slices also wait there.
  DEVICE float* result(int slice, int which) const { return place(BACK ? p.behind : p.ahead, segment, slice, which); }

  // ---- a slice of the state, in registers or waiting ----
  DEVICE void start(int slice) {
    const StateAt<PL> at(p, slice, part);
    rates.init(at.load(p.A, d));
    if (!folds()) {
      h = {};
      return;
    }
    h = at.load(p.first, b * int64_t(p.channels) + d);
    for (int s = 0; inside && s < segment; s++)
      h = mad(load_column<PL>(place(p.ahead, s, slice, 0), p.padded), h,
              load_column<PL>(place(p.ahead, s, slice, 1), p.padded));
  }
  DEVICE void take(int slice) {
    if (p.slices == 1) return;
    rates.init(StateAt<PL>(p, slice, part).load(p.A, d));
    h = load_four<PL>(&held(slice).x);
    if constexpr (!R::POWERS)
      if (!folds()) product = load_column<PL>(result(slice, 0), p.padded);
  }
  DEVICE void leave(int slice) {
    if (p.slices == 1) return;
    held(slice) = as_four<PL>(h);
    if constexpr (!R::POWERS)
      if (!folds()) store_column<PL>(result(slice, 0), p.padded, product);
  }
  DEVICE void finish(int slice) {
    if (!inside) return;
    if constexpr (OUT) {
      if (segment == p.segments - 1) StateAt<PL>(p, slice, part).store(p.last, b * int64_t(p.channels) + d, h);
    } else if (!folds()) {
      X decay = product;
      if constexpr (R::POWERS) decay = rates.decay(sum / p.slices);
      store_column<PL>(result(slice, 0), p.padded, unless(!alive, decay));
      store_column<PL>(result(slice, 1), p.padded, h);
    }
  }

  // ---- loading, a tile ahead; beyond the last step what stands before it is read again ----
  DEVICE static void advance(const char*& at, const Along& x, int rows) { at += (BACK ? -rows : rows) * x.time; }
  DEVICE void next_weights(int s0) {
    if (s0 + int(tid / kParts) >= steps) return;
    advance(at_B, BACK ? p.C : p.B, TILE);
    if constexpr (OUT) advance(at_C, p.C, TILE);
  }
  DEVICE void load_weights(int slice) {
    load_quad<E, PL>(qb, reinterpret_cast<const E*>(at_B), p, slice, tid % kParts);
    if constexpr (OUT) load_quad<E, PL>(qc, reinterpret_cast<const E*>(at_C), p, slice, tid % kParts);
  }
  DEVICE static void put(float* to, Quad<E> q, bool conjugate) {
    float4 v = q.get();
    if (PL == 2 && conjugate) v = make_float4(v.x, v.y, -v.z, -v.w);
    *reinterpret_cast<float4*>(to) = v;
  }
  DEVICE void store_weights(int k) {
    put(sm.B[k] + tid * 4, qb, BACK);
    if constexpr (OUT) put(sm.C[k] + tid * 4, qc, true);
  }
  template <bool MORE, class F>  // MORE: there are ROWS steps after this tile
  DEVICE void load_pairs(int s0, const F& load) {
    UNROLL for (int i = 0; i < PS; i++) {
      load(xu[i], reinterpret_cast<const E*>(at_u));
      load(xd[i], reinterpret_cast<const E*>(at_delta));
      if (MODE != kStates && p.z.data) load(xz[i], reinterpret_cast<const E*>(at_z));
      if (MORE || s0 + int(er) + (i + 1) * ROWS < steps) {
        advance(at_u, BACK ? p.grad : p.u, ROWS);
        advance(at_delta, p.delta, ROWS);
        if constexpr (MODE != kStates) advance(at_z, p.z, ROWS);
      }
    }
  }
  DEVICE void load_elements(int s0) {
    if (p.pairs && s0 + TILE + ROWS <= steps)
      load_pairs<true>(s0, [](Pair<E>& to, const E* from) { to.load(from); });
    else
      load_pairs<false>(s0, [this](Pair<E>& to, const E* from) { p.pairs ? to.load(from) : to.load(from, couple.next); });
    if (p.dt) UNROLL for (int i = 0; i < PS; i++) elapsed[i] = p.dt[int64_t(b) * p.time + at(s0 + er + i * ROWS)];
    if (p.reset) {
      const int s = s0 + tid % 32;
      fresh = s < steps && p.reset[int64_t(b) * p.time + at(s)];
    }
  }
  DEVICE static float2 gated(float2 x, float2 z) {
    return make_float2(x.x * z.x * sigmoid(z.x), x.y * z.y * sigmoid(z.y));
  }

  // {span, drive} of two channels at each row; zeros hold the state after the last step. All rows at once, so that
  // the chains of one hide those of another.
  DEVICE void hand_over(int s0, float2 bias) {
    float2 x[PS], step[PS];
    UNROLL for (int i = 0; i < PS; i++) {
      const float2 raw = xd[i].get();
      step[i] = make_float2(raw.x + bias.x, raw.y + bias.y);
      x[i] = xu[i].get();
    }
    if (p.softplus) UNROLL for (int i = 0; i < PS; i++) step[i] = make_float2(soft_plus(step[i].x), soft_plus(step[i].y));
    if (BACK && p.z.data) UNROLL for (int i = 0; i < PS; i++) x[i] = gated(x[i], xz[i].get());
    UNROLL for (int i = 0; i < PS; i++) {
      const int to = (er + i * ROWS) * C + tid % (C / 2) * 2;
      const float2 span = make_float2(step[i].x * elapsed[i], step[i].y * elapsed[i]);
      if (RULE == kEuler && !BACK) x[i] = make_float2(x[i].x * span.x, x[i].y * span.y);
      *reinterpret_cast<float4*>(&sm.x[to]) = make_float4(span.x, x[i].x, span.y, x[i].y);
      if constexpr (STEP) *reinterpret_cast<float2*>(&sm.step[to]) = step[i];
    }
    if (s0 + TILE <= steps) return;
    for (int row = er; row < TILE; row += ROWS) {
      const int to = row * C + tid % (C / 2) * 2;
      if (s0 + row < steps) continue;
      *reinterpret_cast<float4*>(&sm.x[to]) = make_float4(0, 0, 0, 0);
      if constexpr (STEP) *reinterpret_cast<float2*>(&sm.step[to]) = make_float2(0, 0);
    }
  }

  // ---- the recurrence over four steps, the sums of whose four lanes for y are exchanged at the end ----
  template <bool CUT>
  DEVICE void walk(int s0, int t0, int t1, int k, int slice, uint32_t cuts) {
    float y[kParts];
    UNROLL for (int q = 0; q < kParts; q++) {
      const int t = t0 + t1 + q;
      const bool cut = CUT && (cuts >> t & 1);
      if constexpr (MODE != kReverse)
        if ((UNROLLED % kStepsKept == 0 ? t1 + q : t) % kStepsKept == 0 && p.saved && s0 + t < steps)
          keep();
      const float2 x = sm.x[t * C + ch];
      const X B = load_four<PL>(sm.B[k] + t * kSlice + part * kHeld);
      X a = rates.decay(x.x);
      if constexpr (BACK) {
        a = conj(a);
        h = unless(cut, mul(a, mad(x.y, B, h)));
      } else {
        X in = scale(x.y, B);
        if constexpr (R::SPLIT) {
          const float step = sm.step[t * C + ch];
          in = mul(rates.gain(step, rates.decay(step)), in);
        } else if constexpr (R::SHAPED) {
          in = mul(rates.gain(x.x, a), in);
        }
        h = mad(a, unless(cut, h), in);
      }
      if constexpr (!OUT && !R::POWERS) product = mul(product, a);
      if constexpr (!OUT && R::POWERS) sum += x.x;
      if constexpr (OUT) y[q] = dot(load_four<PL>(sm.C[k] + t * kSlice + part * kHeld), h);
    }
    if constexpr (OUT) {
      UNROLL for (int o = kParts / 2; o; o /= 2) {
        const bool up = part & o;
        UNROLL for (int i = 0; i < o; i++) {
          const float keeps = up ? y[i + o] : y[i], sends = up ? y[i] : y[i + o];
          y[i] = keeps + __shfl_xor_sync(~0u, sends, o * 8);
        }
      }
      float& to = sm.y[(t0 + t1 + part) * YS + ch];
      to = slice ? to + y[0] : y[0];
    }
  }
  // Also for places beyond the last channel, so that what the backward pass reads there is finite.
  DEVICE void keep() {
    store_column<PL>(kept, p.padded, h);
    kept += int64_t(p.slices * kSlice) * p.padded;
  }
  DEVICE void walk_tile(int s0, int k, int slice, uint32_t cuts) {
    if (!BACK && p.saved) {
      const int64_t chunk = int64_t(b) * ((p.time + kStepsKept - 1) / kStepsKept) + (begin + s0) / kStepsKept;
      const int64_t row = (chunk * p.slices + slice) * kSlice + part * kHeld;
      kept = p.saved + row * p.padded + home.padded + ch;
    }
#pragma unroll 1
    for (int t0 = 0; t0 < TILE; t0 += UNROLLED) {
      if (cuts) {  // as if a sequence started, by short code
#pragma unroll 1
        for (int t1 = 0; t1 < UNROLLED; t1 += kParts) walk<true>(s0, t0, t1, k, slice, cuts);
      } else {
        UNROLL for (int t1 = 0; t1 < UNROLLED; t1 += kParts) walk<false>(s0, t0, t1, k, slice, 0);
      }
    }
  }

  DEVICE void write(int s0, const Pair<E> (&u)[PS], const Pair<E> (&z)[PS], float2 skip) const {
    float2 out[PS];
    UNROLL for (int i = 0; i < PS; i++) {
      const float2 y = *reinterpret_cast<const float2*>(&sm.y[(er + i * ROWS) * YS + tid % (C / 2) * 2]), x = u[i].get();
      out[i] = make_float2(fmaf(skip.x, x.x, y.x), fmaf(skip.y, x.y, y.y));
    }
    if (p.z.data) UNROLL for (int i = 0; i < PS; i++) out[i] = gated(out[i], z[i].get());
    E* to = static_cast<E*>(p.y) + ((int64_t(b) * p.time + begin + s0 + er) * p.channels + couple.first);
    UNROLL for (int i = 0; i < PS; i++, to += ROWS * p.channels)
      if (s0 + int(er) + i * ROWS < steps) couple.put(p.pairs, to, out[i]);
  }

  DEVICE void run() {
    for (int slice = 0; slice < p.slices; slice++) {
      start(slice);
      leave(slice);
    }
    if (steps > 0) run_tiles();
    for (int slice = 0; slice < p.slices; slice++) {
      take(slice);
      finish(slice);
    }
    if constexpr (OUT)  // beyond the length of a sequence
      for (int t = max(begin, end) + er; t < min(p.time, begin + p.length); t += ROWS)
        couple.template store<E>(p.pairs, p.y, int64_t(b) * p.time + t, p.channels, make_float2(0, 0));
  }

  DEVICE void run_tiles() {
    const float2 bias = couple.of(p.bias), skip = couple.of(p.D);
    load_weights(0);
    load_elements(0);
    store_weights(0);
    int k = 0;
#pragma unroll 1
    for (int s0 = 0; s0 < steps; s0 += TILE) {
      Pair<E> u[PS], z[PS];
      UNROLL for (int i = 0; i < PS; i++) {
        u[i] = xu[i];
        z[i] = xz[i];
      }
      hand_over(s0, bias);
      const uint32_t cuts = __ballot_sync(~0u, fresh);
      alive &= !cuts;
      const bool more = s0 + TILE < steps;
      if (more) load_elements(s0 + TILE);
#pragma unroll 1
      for (int slice = 0; slice < p.slices; slice++, k ^= 1) {
        const bool next = slice + 1 < p.slices, any = next || more;
        if (!next) next_weights(s0 + TILE);
        if (any) load_weights(next ? slice + 1 : 0);
        if (slice == 0) __syncthreads();
        take(slice);
        walk_tile(s0, k, slice, cuts);
        leave(slice);
        if (any) store_weights(k ^ 1);
        __syncthreads();
      }
      if constexpr (OUT) write(s0, u, z, skip);
    }
  }
};

template <class E, int PL, int RULE, int MODE>
__global__ void __launch_bounds__(kScanThreads, 4) selective_scan_kernel(const Selective p) {
  using Scan = SelectiveScan<E, PL, RULE, MODE>;
  __shared__ __align__(16) typename Scan::Shared shared;
  Scan(p, shared).run();
}

}  // namespace lrnnx::cuda
