// The selective scan forward, and the walks before its backward pass.
//
// Four lanes share a channel, with four numbers of its state each, so that a batch of usual size fills a GPU without
// cutting time. What is done once an element (softplus, gate, conversion, memory) is done by other lanes than the
// recurrence: each has two adjacent channels at some steps, and hands {span, drive} over in shared memory. Where there
// are few channels, time is cut into segments: a walk before finds what each does to the state that it is given, and
// the main walk folds the earlier segments in. More than 16 numbers of a state are walked slice after slice, over 32
// steps at a time, while the state of the other slices waits in scratch memory.
//
// A block is 4 warps for 32 channels. Its threads change between two roles for each tile of 32 steps (real states):
//
//   recurrence      lane of warp 0    0 .. 7        8 .. 15       16 .. 23      24 .. 31
//   (part, ch)      channel           0 .. 7        0 .. 7        0 .. 7        0 .. 7      warp 1: channels 8 .. 15
//                   holds in h        states 0-3    states 4-7    states 8-11   states 12-15
//   elementwise     thread 0          channels 0, 1 at steps 0, 8, 16, 24 of the tile; thread 1: channels 2, 3
//   (couple, er)    thread 16         channels 0, 1 at steps 1, 9, 17, 25
//
//   global u, delta, z  --copied a tile ahead--> shared raw       --elementwise--> shared x: {span, drive}
//   global B, C         --copied ahead---------> shared quads     -- as float ---> shared B, C
//   shared x, B, C      --recurrence, h in registers; 4 lanes add up their parts of Re(C h)--> shared y
//   shared y, raw       --elementwise: y + D u, gate--> global y
#pragma once
#include "selective_tile.cuh"

namespace lrnnx::cuda {

// kOutput computes y. kStates computes h alone: either h is kept every 8 steps, or only the segment's decay and end
// state are stored. kReverse computes decay and end for the gradient of the state, which is the same recurrence from the
// last step to the first: r[t−1] = conj(a[t])·(r[t] + dy[t]·conj(C[t])).
enum Pass { kOutput, kStates, kReverse };

constexpr int kScanThreads = 128, kScanChannels = 32, kTileSteps = 32;

extern __shared__ float4 selective_memory[];

template <class E, int PL, int RULE, int MODE>
struct SelectiveScan {
  using R = Rates<PL, RULE>;
  using X = typename R::X;
  static constexpr bool OUT = MODE == kOutput, BACK = MODE == kReverse, STEP = R::SPLIT && !BACK;
  static constexpr int C = kScanChannels, NT = kScanThreads, TILE = kTileSteps;
  static constexpr int VE = 16 / sizeof(E), VECTORS = C / VE, STAGED = NT / VECTORS;  // of a copy, a row; rows at once
  static constexpr int ROWS = NT / (C / 2), PS = TILE / ROWS;             // of the elementwise role: rows at once, turns
  static constexpr int YS = C + C / kParts;                               // a row of y, without bank conflicts
  static constexpr int UNROLLED = PL == 2 ? 4 : R::SHAPED ? 8 : 16;       // more would not fit the instruction cache

  struct alignas(16) Shared {
    float B[TILE * kSlice], C[OUT ? TILE * kSlice : 4];
    float2 x[TILE * SelectiveScan::C];                                    // span, drive
    float step[STEP ? TILE * SelectiveScan::C : 4], y[OUT ? TILE * YS : 4];
    E raw[2][3][TILE][SelectiveScan::C];                                  // u or its gradient, delta, z
    Quad<E> quads[OUT ? 2 : 1][NT];                                       // B and C, as they were read ahead
    float elapsed[2][TILE];
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
  float* kept;          // where states of this tile go that the backward pass starts from
  const Couple couple;  // of the elementwise role, as is its first row
  const unsigned er;
  bool fresh, longer;   // a sequence starts at this lane's step; a span that this thread handed over is long
  const char *at_u, *at_delta, *at_z, *at_B, *at_C;  // what is copied next

  DEVICE SelectiveScan(const Selective& given, Shared& sm)
      : p(of_sequence(given, blockIdx.y)), sm(sm), tid(threadIdx.x), part(tid % 32 / 8),
        ch(tid / 32 * 8 + tid % 8), b(blockIdx.y),
        segment(blockIdx.z + BACK), begin(segment * p.length), home(p), inside(int(ch) < home.width), d(home.channel(ch)),
        product(R::one()), sum(0), alive(true), couple(home, tid % (C / 2) * 2), er(tid / (C / 2)), fresh(false), longer(false) {
    const int64_t length = p.lengths ? min(max(p.lengths[b], int64_t(0)), int64_t(p.time)) : p.time;
    end = min(int(length), begin + p.length);
    steps = end - begin;
    const int row = at(tid / VECTORS), c = home.from + min(int(tid % VECTORS) * VE, home.width - VE);
    const int weight_row = at(tid / kParts), states = home.group * PL * p.states * int(sizeof(E));
    at_u = row_of<char>(BACK ? p.grad : p.u, row) + c * int(sizeof(E));
    at_delta = row_of<char>(p.delta, row) + c * int(sizeof(E));
    at_z = row_of<char>(p.z, row) + c * int(sizeof(E));
    at_B = row_of<char>(BACK ? p.C : p.B, weight_row) + states;
    at_C = row_of<char>(p.C, weight_row) + states;
    const int64_t chunk = int64_t(b) * ((p.time + kStepsKept - 1) / kStepsKept) + begin / kStepsKept;
    kept = p.saved + (chunk * p.slices * kSlice + part * kHeld) * p.padded + home.padded + ch;
    if (!p.dt && tid < TILE) sm.elapsed[0][tid] = sm.elapsed[1][tid] = 1;
  }

  DEVICE int at(int s) const {  // step of the walk -> time
    s = min(s, steps - 1);
    return BACK ? end - 1 - s : begin + s;
  }
  DEVICE bool folds() const { return OUT || (!BACK && p.saved); }  // else it finds what a segment does
  DEVICE float4& waiting(int slice) const {
    const int64_t row = (int64_t(b) * p.segments + segment) * p.slices + slice;
    return reinterpret_cast<float4*>(p.carry)[(row * gridDim.x + blockIdx.x) * NT + tid];
  }
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
    h = load_four<PL>(&waiting(slice).x);
    if constexpr (!R::POWERS)
      if (!folds()) product = load_column<PL>(result(slice, 0), p.padded);
  }
  DEVICE void leave(int slice) {
    if (p.slices == 1) return;
    waiting(slice) = as_four<PL>(h);
    if constexpr (!R::POWERS)
      if (!folds()) store_column<PL>(result(slice, 0), p.padded, product);
  }
  DEVICE void finish(int slice) {
    if (!inside) return;
    if constexpr (OUT) {
      if (segment == p.segments - 1) StateAt<PL>(p, slice, part).store(p.last, b * int64_t(p.channels) + d, h);
    } else if (!folds()) {
      X decay = product;
      if constexpr (R::POWERS) decay = rates.template decay<false>(sum / p.slices);
      store_column<PL>(result(slice, 0), p.padded, unless(!alive, decay));
      store_column<PL>(result(slice, 1), p.padded, h);
    }
  }

  // ---- copying, one tile ahead. Beyond the last step the last row is read again; its values are not used ----
  DEVICE static void advance(const char*& at, const Along& x, int rows) { at += (BACK ? -rows : rows) * x.time; }
  DEVICE void next_weights(int s0) {
    const int further = s0 + int(tid / kParts) < steps ? TILE : 0;
    advance(at_B, BACK ? p.C : p.B, further);
    if constexpr (OUT) advance(at_C, p.C, further);
  }
  DEVICE void stage_weights(int slice) {
    stage_quad<E, PL>(sm.quads[0][tid], reinterpret_cast<const E*>(at_B), p, slice, tid % kParts);
    if constexpr (OUT) stage_quad<E, PL>(sm.quads[1][tid], reinterpret_cast<const E*>(at_C), p, slice, tid % kParts);
  }
  DEVICE void put_weights() {
    put_quad<E, PL>(sm.B + tid * 4, sm.quads[0][tid], BACK);
    if constexpr (OUT) put_quad<E, PL>(sm.C + tid * 4, sm.quads[1][tid], true);
  }
  DEVICE void stage_elements(int s0, int buffer) {
    const bool gates = MODE != kStates && p.z.data;
    E* const to = &sm.raw[buffer][0][0][0];
    if (p.vectors) {
      UNROLL for (int row = 0; row < TILE; row += STAGED) {
        const uint32_t place = shared_address(to + row * C + tid * VE), plane = TILE * C * sizeof(E);
        copy16(place, at_u, true);
        copy16(place + plane, at_delta, true);
        if (gates) copy16(place + 2 * plane, at_z, true);
        const int further = s0 + row + STAGED + int(tid / VECTORS) < steps ? STAGED : 0;
        advance(at_u, BACK ? p.grad : p.u, further);
        advance(at_delta, p.delta, further);
        advance(at_z, p.z, further);
      }
    } else {
#pragma unroll 1
      for (int e = tid; e < (gates ? 3 : 2) * TILE * C; e += NT) {
        const Along from = e < TILE * C ? BACK ? p.grad : p.u : e < 2 * TILE * C ? p.delta : p.z;
        to[e] = row_of<E>(from, at(s0 + e / C % TILE))[home.channel(e % C)];
      }
    }
    const int t = at(s0 + tid % TILE);
    if (p.dt && tid < TILE) copy_one(&sm.elapsed[buffer][tid], p.dt + int64_t(b) * p.time + t, true);
    if (p.reset) fresh = s0 + int(tid % TILE) < steps && p.reset[int64_t(b) * p.time + t];
  }
  DEVICE float2 raw(int buffer, int which, int i) const {
    return load_pair(&sm.raw[buffer][which][er + i * ROWS][tid % (C / 2) * 2]);
  }

  // Writes {span, drive} of two channels for each of this thread's rows. After the last step it writes zeros, which
  // leave the state as it is. All rows are computed together, so that one row's latency hides behind another's.
  DEVICE void hand_over(int s0, int buffer, float2 bias) {
    float2 x[PS], step[PS];
    UNROLL for (int i = 0; i < PS; i++) {
      step[i] = add(raw(buffer, 1, i), bias);
      x[i] = raw(buffer, 0, i);
    }
    if (p.softplus) UNROLL for (int i = 0; i < PS; i++) step[i] = soft_plus(step[i]);
    if (BACK && p.z.data) UNROLL for (int i = 0; i < PS; i++) x[i] = gated(x[i], raw(buffer, 2, i));
    longer = false;
    UNROLL for (int i = 0; i < PS; i++) {
      const int to = (er + i * ROWS) * C + tid % (C / 2) * 2;
      const float2 span = mul(step[i], twice(sm.elapsed[buffer][er + i * ROWS]));
      longer |= R::far(fmaxf(span.x, span.y)) || (STEP && R::far(fmaxf(step[i].x, step[i].y)));
      if (R::DRIVEN && !BACK) x[i] = mul(x[i], span);
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

  // ---- the recurrence over four steps; then the four lanes of a channel exchange their parts of y ----
  template <bool RARE>
  DEVICE void walk(int s0, int t0, int t1, int slice, uint32_t cuts) {
    float y[kParts];
    UNROLL for (int q = 0; q < kParts; q++) {
      const int t = t0 + t1 + q;
      const bool cut = RARE && (cuts >> t & 1);
      if constexpr (MODE != kReverse)
        if ((UNROLLED % kStepsKept == 0 ? t1 + q : t) % kStepsKept == 0 && p.saved && s0 + t < steps)
          keep(t, slice);
      const float2 x = sm.x[t * C + ch];
      const X B = load_four<PL>(sm.B + t * kSlice + part * kHeld);
      X a = rates.template decay<RARE>(x.x);
      if constexpr (BACK) {
        a = conj(a);
        h = unless(cut, mul(a, mad(x.y, B, h)));
      } else {
        X in = scale(x.y, B);
        if constexpr (R::SPLIT) {
          const float step = sm.step[t * C + ch];
          in = mul(rates.gain(step, rates.template decay<RARE>(step)), in);
        } else if constexpr (R::SHAPED) {
          in = mul(rates.gain(x.x, a), in);
        }
        h = mad(a, unless(cut, h), in);
      }
      if constexpr (!OUT && !R::POWERS) product = mul(product, a);
      if constexpr (!OUT && R::POWERS) sum += x.x;
      if constexpr (OUT) y[q] = dot(load_four<PL>(sm.C + t * kSlice + part * kHeld), h);
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
  // Places beyond the last channel are written too, so that the backward pass reads finite numbers there.
  DEVICE void keep(int t, int slice) const {
    store_column<PL>(kept + int64_t(t / kStepsKept * p.slices + slice) * (kSlice * p.padded), p.padded, h);
  }
  DEVICE void walk_tile(int s0, int slice, uint32_t cuts, bool far) {
    const bool rare = cuts || far || (R::TURNS && __any_sync(~0u, rates.wild()));
#pragma unroll 1
    for (int t0 = 0; t0 < TILE; t0 += UNROLLED) {
      if (rare) {  // by short code
#pragma unroll 1
        for (int t1 = 0; t1 < UNROLLED; t1 += kParts) walk<true>(s0, t0, t1, slice, cuts);
      } else {
        UNROLL for (int t1 = 0; t1 < UNROLLED; t1 += kParts) walk<false>(s0, t0, t1, slice, 0);
      }
    }
  }

  DEVICE void write(int s0, int buffer, float2 skip) const {
    float2 out[PS];
    UNROLL for (int i = 0; i < PS; i++) {
      const float2 y = *reinterpret_cast<const float2*>(&sm.y[(er + i * ROWS) * YS + tid % (C / 2) * 2]);
      out[i] = mad(skip, raw(buffer, 0, i), y);
    }
    if (p.z.data) UNROLL for (int i = 0; i < PS; i++) out[i] = gated(out[i], raw(buffer, 2, i));
    E* const to = static_cast<E*>(p.y) + ((int64_t(b) * p.time + begin + s0 + er) * p.channels + couple.first);
    const auto each = [&](const auto& put) {
      UNROLL for (int i = 0; i < PS; i++)
        if (couple.inside && s0 + int(er) + i * ROWS < steps) put(to + int64_t(i * ROWS) * p.channels, out[i]);
    };
    if (p.pairs)
      each([](E* to, float2 v) { store_pair(to, v); });
    else
      each([&](E* to, float2 v) { couple.put(false, to, v); });
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
    stage_elements(0, 0);
    stage_weights(0);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    int buffer = 0;
#pragma unroll 1
    for (int s0 = 0; s0 < steps; s0 += TILE, buffer ^= 1) {
      hand_over(s0, buffer, bias);
      const uint32_t cuts = __ballot_sync(~0u, fresh);
      alive &= !cuts;
      const bool more = s0 + TILE < steps;
#pragma unroll 1
      for (int slice = 0; slice < p.slices; slice++) {
        const bool next = slice + 1 < p.slices;
        put_weights();
        const bool far = R::any_thread(longer);
        // The next copies go to memory that no thread reads any more: all have passed the barrier above.
        if (slice == 0 && more) stage_elements(s0 + TILE, buffer ^ 1);
        if (!next) next_weights(s0 + TILE);
        if (next || more) stage_weights(next ? slice + 1 : 0);
        commit_copies();
        take(slice);
        walk_tile(s0, slice, cuts, far);
        leave(slice);
        wait_copies<0>();
        __syncthreads();
      }
      if constexpr (OUT) write(s0, buffer, skip);
      kept += int64_t(TILE / kStepsKept * p.slices) * (kSlice * p.padded);
    }
  }
};

template <class E, int PL, int RULE, int MODE>
__global__ void __launch_bounds__(kScanThreads, 4) selective_scan_kernel(const Selective p) {
  using Scan = SelectiveScan<E, PL, RULE, MODE>;
  Scan(p, *reinterpret_cast<typename Scan::Shared*>(selective_memory)).run();
}

}  // namespace lrnnx::cuda
