// The selective scan's backward pass: from the state kept before every 8 steps, which are walked forward into registers
// and then back. Lanes as forward (selective_scan.cuh), 8 warps for 64 channels; selective_memory.cuh draws one chunk.
// Sums over channels go to scratch memory, a row for each block; other kernels add the rows in order.
#pragma once
#include "memory.cuh"
#include "selective_memory.cuh"
#include "selective_scan.cuh"

namespace lrnnx::cuda {

// Not inlined: it is called rarely, and inlined it would take registers from the usual path.
static __device__ __noinline__ float4 numbers_or_0(float4 x) {
  const auto kept = [](float v) { return isfinite(v) ? v : 0.f; };
  return make_float4(kept(x.x), kept(x.y), kept(x.z), kept(x.w));
}

template <class E, int PL, int RULE>
struct SelectiveBackward {
  using R = Rates<PL, RULE>;
  using X = typename R::X;
  using Sums = ChannelSums<E>;
  using Shared = BackShared<E, RULE>;
  static constexpr int C = kBlockOf, T = kStepsKept, NT = kBackThreads, SUM = Shared::SUM, V = kHeld / PL,
                       VE = 16 / sizeof(E), TURNS = 4 * T * C / VE / NT;
  static constexpr bool STEP = Shared::STEP;

  const Selective p;  // a copy, whose fields the compiler knows not to change
  Shared& sm;
  const unsigned tid, lane, warp, part, ch;
  const int b, segment, begin;
  const Home<C> home;
  int end, first_chunk, last_chunk;
  R rates;
  X r, dA;  // gradient of the state, and of A
  bool fresh, longer;  // a sequence starts at this lane's step; a span that this thread gave is long

  DEVICE SelectiveBackward(const Selective& given, Shared& sm)
      : p(of_sequence(given, blockIdx.y)), sm(sm), tid(threadIdx.x), lane(tid % 32), warp(tid / 32), part(lane / 8),
        ch(warp * 8 + lane % 8), b(blockIdx.y), segment(blockIdx.z), begin(segment * p.length), home(p), r{}, dA{},
        fresh(false), longer(false) {
    sm.totals[tid] = make_float4(0, 0, 0, 0);
    const int64_t length = p.lengths ? min(max(p.lengths[b], int64_t(0)), int64_t(p.time)) : p.time;
    end = min(int(length), begin + p.length);
    first_chunk = begin / T;
    last_chunk = (end + T - 1) / T - 1;
    if (warp == 0) {
      const Couple pair(home, lane * 2);
      const float2 bias = pair.of(p.bias), skip = pair.of(p.D);
      sm.couples[lane] = pair;
      sm.places[lane] = int64_t(b) * p.time * p.channels + pair.first;
      sm.constants[lane] = make_float4(bias.x, bias.y, skip.x, skip.y);
    }
    for (int i = tid; i < 4 * T * C / VE; i += NT) {
      const Along from = tensor(i * VE);
      const int c = home.from + min(i * VE % C, home.width - VE);
      sm.sources[i] = {from.data ? from.data + c * int(sizeof(E)) : nullptr, from.time};
    }
    const int64_t chunks = int64_t(b) * ((p.time + T - 1) / T);
    sm.kept[tid] = p.saved + (chunks * p.slices * kSlice + tid / 16) * p.padded + home.padded + tid % 16 * 4;
    if (tid < 2 * T * kParts) {
      const Along from = tid < T * kParts ? p.B : p.C;
      sm.weights_from[tid] = {from.data + home.group * PL * p.states * int(sizeof(E)), from.time};
    }
    const int which = tid / kSlice % 2, n = tid % kSlice;  // sum_weights'
    sm.sinks[tid] = {weight_sum(which, varies(which) ? warp : segment * T + warp) + n,
                     which * Sums::SIZE + Sums::place(warp, n / kHeld, n % kHeld),
                     varies(which) ? T * p.slices * kSlice : 0};
    __syncthreads();
  }

  // Computed again at each use, since registers are scarce.
  DEVICE int64_t channel() const { return home.channel(ch); }
  DEVICE const Couple& couple() const { return sm.couples[lane]; }

  // ---- what a slice keeps between chunks, in registers if there is one only ----
  DEVICE float* channel_sum(int number) const {
    const int64_t row = int64_t(b) * p.segments + segment;
    return p.part_channel + (row * (p.slices * kSlice + 2) + number) * p.padded + home.padded;
  }
  DEVICE float* carried(int slice) const {
    const int64_t row = int64_t(b) * p.segments + segment;
    return p.carry + ((row * p.slices + slice) * kSlice + part * kHeld) * p.padded + home.padded + ch;
  }
  DEVICE void start(int slice) {
    const StateAt<PL> at(p, slice, part);
    rates.init(at.load(p.A, channel()));
    if (ch < home.width) r = at.load(p.grad_last, b * int64_t(p.channels) + channel());
    for (int s = p.segments - 1; s > segment; s--) {
      const float* const from = p.behind + int64_t(part * kHeld) * p.padded + home.padded + ch;
      if (ch < home.width)
        r = mad(load_column<PL>(from + segment_row(p, b, s, slice, 0), p.padded), r,
                load_column<PL>(from + segment_row(p, b, s, slice, 1), p.padded));
    }
  }
  DEVICE void take(int slice) {
    if (p.slices == 1) return;
    rates.init(StateAt<PL>(p, slice, part).load(p.A, channel()));
    r = load_column<PL>(carried(slice), p.padded);
    dA = load_column<PL>(channel_sum(slice * kSlice + part * kHeld) + ch, p.padded);
  }
  DEVICE void leave(int slice) const {
    if (p.slices == 1) return;
    store_column<PL>(carried(slice), p.padded, r);
    store_column<PL>(channel_sum(slice * kSlice + part * kHeld) + ch, p.padded, dA);
  }

  // ---- reading ahead ----
  DEVICE Along tensor(int element) const {
    const int which = element / (T * C);
    return which == 0 ? p.u : which == 1 ? p.delta : which == 2 ? p.grad : p.z;
  }
  DEVICE void stage_elements(int chunk) {
    E* const to = &sm.raw[chunk & 1][0][0][0];
    if (p.vectors) {
      UNROLL for (int turn = 0; turn < TURNS; turn++) {
        const unsigned i = tid + turn * NT;
        const auto from = sm.sources[i];
        const int t = min(int(chunk * T + i * VE / C % T), end - 1);
        if (from.data) copy16(shared_address(to + i * VE), from.data + int64_t(t) * from.time, true);
      }
    } else {
#pragma unroll 1
      for (int e = tid; e < 4 * T * C; e += NT) {
        const Along from = tensor(e);
        if (from.data) to[e] = row_of<E>(from, min(chunk * T + e / C % T, end - 1))[home.channel(e % C)];
      }
    }
    const int t = chunk * T + lane % T;
    if (p.reset) fresh = t < end && p.reset[int64_t(b) * p.time + t];
  }
  DEVICE void stage_slice(int chunk, int slice, int buffer) {
    const unsigned number = tid / 16;
    copy16(shared_address(&sm.h[buffer][number % 4 * 4 + number / 4][tid % 16 * 4]),
           sm.kept[tid] + int64_t(chunk * p.slices + slice) * (kSlice * p.padded), true);
    if (tid >= 2 * T * kParts) return;
    const auto from = sm.weights_from[tid];
    const int t = min(chunk * T + int(tid / kParts % T), end - 1);
    const E* const row = reinterpret_cast<const E*>(from.data + int64_t(t) * from.time);
    stage_quad<E, PL>(sm.quads[tid], row, p, slice, tid % kParts);
  }
  DEVICE void put_weights() {
    const int half = T * kParts;
    if (tid < half)
      put_quad<E, PL>(sm.B + tid * 4, sm.quads[tid], false);
    else if (tid < 2 * half)
      put_quad<E, PL>(sm.C_ + (tid - half) * 4, sm.quads[tid], true);
  }

  // ---- elementwise work before and after the recurrence ----
  DEVICE float2 raw(int chunk, int which) const {
    return load_pair(&sm.raw[chunk & 1][which][warp][lane * 2]);
  }
  DEVICE float elapsed(int chunk) const {
    return p.dt ? p.dt[int64_t(b) * p.time + min(max(chunk * T + int(warp), 0), end - 1)] : 1.f;
  }
  DEVICE float2 step_of(float2 raw) const { return p.softplus ? soft_plus(raw) : raw; }
  DEVICE float2 delta_of(int chunk) const {
    return add(raw(chunk, 1), *reinterpret_cast<const float2*>(&sm.constants[lane]));
  }
  // Writes to shared memory what the walk over a chunk reads: span, drive and dy of two channels at a step.
  DEVICE void give(int chunk, float2 step, float2 u, float2 dy, float dt) {
    const int to = warp * C + lane * 2;
    const float2 span = mul(step, twice(dt)), drive = R::DRIVEN ? mul(u, span) : u;
    longer = R::far(fmaxf(span.x, span.y)) || (STEP && R::far(fmaxf(step.x, step.y)));
    const bool in_time = chunk * T + int(warp) < end;
    const bool one = in_time && int(lane * 2) < home.width, two = in_time && int(lane * 2 + 1) < home.width;
    *reinterpret_cast<float4*>(&sm.x[to]) =
        make_float4(one ? span.x : 0, one ? drive.x : 0, two ? span.y : 0, two ? drive.y : 0);
    *reinterpret_cast<float2*>(&sm.dy[to]) = make_float2(one ? dy.x : 0, two ? dy.y : 0);
    if constexpr (STEP) *reinterpret_cast<float2*>(&sm.step[to]) = make_float2(one ? step.x : 0, two ? step.y : 0);
  }
  DEVICE void before(int chunk, float dt) {
    float2 dy = raw(chunk, 2);
    if (p.z.data) dy = gated(dy, raw(chunk, 3));
    give(chunk, step_of(delta_of(chunk)), raw(chunk, 0), dy, dt);
  }
  DEVICE float2 sum_of(int which) const {
    float2 x[kParts];
    UNROLL for (int k = 0; k < kParts; k++)
      x[k] = *reinterpret_cast<const float2*>(&sm.sums[(which * kParts + k) * SUM + warp * C + lane * 2]);
    return add(add(x[0], x[1]), add(x[2], x[3]));
  }
  // Turns the sums over states into gradients of this chunk's elements, and prepares the chunk before it for its walk.
  // Both are done together, so that the latency of one hides behind the other.
  DEVICE void between(int chunk, float dt, float next_dt) {
    const int t = chunk * T + warp, at = warp * C + lane * 2;
    const float2 one = twice(1), none = twice(0);
    const float4 constant = sm.constants[lane], x = *reinterpret_cast<const float4*>(&sm.x[at]);
    const float2 skip = make_float2(constant.z, constant.w), span = make_float2(x.x, x.z);
    const float2 u = raw(chunk, 0), delta = delta_of(chunk), next_u = raw(chunk - 1, 0), next_delta = delta_of(chunk - 1);
    const float2 dy = *reinterpret_cast<const float2*>(&sm.dy[at]);
    const float2 y = sum_of(0), input = sum_of(1);
    float2 along = sum_of(2), next_dy = raw(chunk - 1, 2), slope = one, next_step = next_delta, dz = none;
    if (p.softplus) {
      slope = sigmoid(delta);
      next_step = soft_plus(next_delta);
    }
    if (p.z.data) {
      const float2 z = raw(chunk, 3), grad = raw(chunk, 2), s = sigmoid(z);
      next_dy = gated(next_dy, raw(chunk - 1, 3));
      const float2 rest = mad(z, make_float2(1 - s.x, 1 - s.y), one);
      dz = mul(mul(mad(skip, u, y), grad), mul(s, rest));
    }
    if constexpr (R::DRIVEN) along = mad(u, input, along);
    const float2 du = mad(skip, dy, R::DRIVEN ? mul(span, input) : input);
    const float2 ddelta = mul(mad(along, twice(dt), STEP ? sum_of(STEP ? 3 : 0) : none), slope);
    give(chunk - 1, next_step, next_u, next_dy, next_dt);
    if (t >= end) return;  // all of a warp
    const float4 total = sm.totals[tid];
    const float2 d_skip = mad(dy, u, make_float2(total.x, total.y)), d_bias = add(make_float2(total.z, total.w), ddelta);
    sm.totals[tid] = make_float4(d_skip.x, d_skip.y, d_bias.x, d_bias.y);
    const int64_t to = sm.places[lane] + int64_t(t) * p.channels;
    const auto put = [&](void* tensor, float2 v) {
      const int c = lane * 2;
      put_pair(p.pairs, c < home.width, c + 1 < home.width, static_cast<E*>(tensor) + to, v);
    };
    put(p.du, du);
    put(p.ddelta, ddelta);
    if (p.z.data) put(p.dz, dz);
    if (!p.dt) return;
    const float2 ddt = mul(along, step_of(delta));
    const Couple pair = couple();
    float sum = (pair.inside ? ddt.x : 0.f) + (pair.both ? ddt.y : 0.f);
    for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    if (lane == 0) p.part_dt[(int64_t(blockIdx.x) * p.batch + b) * p.time + t] = sum;
  }
  // The eight warps' sums of B and C at a step.
  DEVICE void sum_weights(int chunk, int slice) const {
    const auto sink = sm.sinks[tid];
    float x[8];
    UNROLL for (int k = 0; k < 8; k++) x[k] = sm.weights[k * 2 * Sums::SIZE + sink.from];
    UNROLL for (int n = 4; n; n /= 2)
      UNROLL for (int k = 0; k < n; k++) x[k] += x[k + n];
    float* const to = sink.to + int64_t(chunk) * sink.step + slice * kSlice;
    const bool adds = !sink.step && chunk != last_chunk;  // to what the same thread left at the chunk after
    const float sum = adds ? *to + x[0] : x[0];
    if (!sink.step || chunk * T + int(warp) < end) *to = sum;
  }
  DEVICE bool varies(int which) const { return (which ? p.B : p.C).time; }
  // The row of a step, or the one of its place in a chunk where weights are the same everywhere.
  DEVICE float* weight_sum(int which, int row) const {
    const int rows = varies(which) ? p.time : p.segments * T;
    return (which ? p.part_B : p.part_C) + ((int64_t(blockIdx.x) * p.batch + b) * rows + row) * p.slices * kSlice;
  }

  // ---- the recurrence over a chunk ----
  DEVICE static void numbers(float (&to)[kHeld], const X& x) {
    UNROLL for (int j = 0; j < kHeld; j++) to[j] = x.v[j / V][j % V];
  }
  DEVICE Handed handed(int t) const {
    const float2 x = sm.x[t * C + ch];
    return {x.x, x.y, STEP ? sm.step[STEP ? t * C + ch : 0] : 0.f};
  }
  // Steps share an accumulator, so a NaN from before a sequence's start must not enter the sums (RARE).
  template <bool RARE>
  DEVICE static void add_numbers(Sums& sums, const X& x, int t, unsigned lane) {
    alignas(16) float v[kHeld];
    numbers(v, x);
    if (RARE) *reinterpret_cast<float4*>(v) = numbers_or_0(make_float4(v[0], v[1], v[2], v[3]));
    sums.add(v, t, lane);
  }
  template <bool ADDS>
  DEVICE void put_sum(int which, int t, int slice, float x) const {
    float& to = sm.sums[(which * kParts + part) * SUM + t * C + ch];
    to = ADDS && slice ? to + x : x;
  }

  // ADDS: there may be several slices. RARE: a sequence starts, or a phase may be distant.
  template <bool ADDS, bool RARE>
  DEVICE void walk(int slice, int buffer, uint32_t cuts) {
    X a[T], h[T + 1];
    UNROLL for (int j = 0; j < kHeld; j++) h[0].v[j / V][j % V] = sm.h[buffer][j * 4 + part][ch];
    {
      Sums sums;
      UNROLL for (int t = 0; t < T; t++) {  // forward: states, y, sums for C
        const Handed x = handed(t);
        const float dy = sm.dy[t * C + ch];
        a[t] = rates.template decay<RARE>(x.span);
        X in = scale(x.drive, load_four<PL>(sm.B + t * kSlice + part * kHeld));
        if constexpr (R::SHAPED) in = mul(rates.gain(STEP ? x.step : x.span, STEP ? rates.template decay<RARE>(x.step) : a[t]), in);
        a[t] = unless(RARE && cuts >> t & 1, a[t]);
        h[t + 1] = mad(a[t], unless(RARE && cuts >> t & 1, h[t]), in);
        put_sum<ADDS>(0, t, slice, dot(load_four<PL>(sm.C_ + t * kSlice + part * kHeld), h[t + 1]));
        add_numbers<RARE>(sums, scale(dy, h[t + 1]), t, lane);
      }
      sums.store(sm.weights + warp * 2 * Sums::SIZE, lane);
    }
    if (RARE && cuts) UNROLL for (int t = 0; t < T; t++) h[t] = unless(cuts >> t & 1, h[t]);
    asm volatile("" ::: "memory");  // load B, C, x and dy again: keeping them would take 88 registers
    {
      Sums sums;
      UNROLL for (int t = T - 1; t >= 0; t--) {  // back
        const Handed x = handed(t);
        const X B = load_four<PL>(sm.B + t * kSlice + part * kHeld);
        const X g = mad(sm.dy[t * C + ch], load_four<PL>(sm.C_ + t * kSlice + part * kHeld), r);
        const Pulled<PL, RULE, RARE> pulled(rates, x, a[t], h[t], B, g, dA);
        r = unless(RARE && cuts >> t & 1, pulled.before);
        put_sum<ADDS>(1, t, slice, pulled.input);
        put_sum<ADDS>(2, t, slice, pulled.along);
        if constexpr (STEP) put_sum<ADDS>(3, t, slice, pulled.step);
        add_numbers<RARE>(sums, pulled.weight, t, lane);
      }
      sums.store(sm.weights + (warp * 2 + 1) * Sums::SIZE, lane);
    }
  }

  DEVICE void run() {
    for (int slice = 0; slice < p.slices; slice++) {
      start(slice);
      leave(slice);
    }
    if (last_chunk >= first_chunk) run_chunks();
    finish();
    if (last_chunk < first_chunk) clear_constant();
    clear();
  }

  DEVICE void run_chunks() {
    stage_elements(last_chunk);
    stage_slice(last_chunk, 0, 0);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    before(last_chunk, elapsed(last_chunk));
    int buffer = 0;
#pragma unroll 1
    for (int chunk = last_chunk; chunk >= first_chunk; chunk--) {
      const uint32_t cuts = __ballot_sync(~0u, fresh) & ((1u << T) - 1);
      const bool more = chunk > first_chunk;
#pragma unroll 1
      for (int slice = 0; slice < p.slices; slice++, buffer ^= 1) {
        const bool next = slice + 1 < p.slices;
        put_weights();
        const bool far = R::any_thread(longer);
        // The next copies go to memory that no thread reads any more: all have passed the barrier above.
        if (slice == 0 && more) stage_elements(chunk - 1);
        if (next || more) stage_slice(next ? chunk : chunk - 1, next ? slice + 1 : 0, buffer ^ 1);
        commit_copies();
        take(slice);
        if (cuts || far || (R::TURNS && __any_sync(~0u, rates.wild()))) walk<true, true>(slice, buffer, cuts);
        else if (p.slices > 1) walk<true, false>(slice, buffer, 0);
        else walk<false, false>(slice, buffer, 0);
        leave(slice);
        wait_copies<0>();
        __syncthreads();
        sum_weights(chunk, slice);
      }
      between(chunk, elapsed(chunk), elapsed(chunk - 1));
    }
  }

  DEVICE void finish() {
    for (int slice = 0; slice < p.slices; slice++) {
      take(slice);
      if (ch >= home.width) continue;
      if (p.slices == 1) store_column<PL>(channel_sum(part * kHeld) + ch, p.padded, dA);
      if (segment == 0) StateAt<PL>(p, slice, part).store(p.dfirst, b * int64_t(p.channels) + channel(), r);
    }
    __syncthreads();
    if (warp > 0) return;
    float4 sum = sm.totals[lane];
    for (int k = 1; k < 8; k++) {
      const float4 x = sm.totals[lane + k * 32];
      sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
    const int at = lane * 2;
    float *const of_skip = channel_sum(p.slices * kSlice) + at, *const of_bias = channel_sum(p.slices * kSlice + 1) + at;
    if (couple().inside) of_skip[0] = sum.x, of_bias[0] = sum.z;
    if (couple().both) of_skip[1] = sum.y, of_bias[1] = sum.w;
  }

  // ---- zeros: beyond the length of a sequence, and for sums of a segment without steps ----
  DEVICE void clear() const {
    const float2 zero = make_float2(0, 0);
    for (int t = max(begin, end) + warp; t < min(p.time, begin + p.length); t += 8) {
      const int64_t row = int64_t(b) * p.time + t;
      couple().template store<E>(p.pairs, p.du, row, p.channels, zero);
      couple().template store<E>(p.pairs, p.ddelta, row, p.channels, zero);
      if (p.z.data) couple().template store<E>(p.pairs, p.dz, row, p.channels, zero);
      if (p.dt && lane == 0) p.part_dt[(int64_t(blockIdx.x) * p.batch + b) * p.time + t] = 0;
      for (int which = 0; which < 2; which++)
        if (varies(which))
          for (int n = lane; n < p.slices * kSlice; n += 32) weight_sum(which, t)[n] = 0;
    }
  }
  DEVICE void clear_constant() const {
    for (int which = 0; which < 2; which++)
      if (!varies(which))
        for (int n = tid; n < T * p.slices * kSlice; n += NT) weight_sum(which, segment * T)[n] = 0;
  }
};

template <class E, int PL, int RULE>
__global__ void __launch_bounds__(kBackThreads, 2) selective_backward_kernel(const Selective p) {
  using Backward = SelectiveBackward<E, PL, RULE>;
  Backward(p, *reinterpret_cast<typename Backward::Shared*>(selective_memory)).run();
}

}  // namespace lrnnx::cuda
