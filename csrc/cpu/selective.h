// The state-expanded recurrence for one batch element and a tile of channels: h = a∘h + gain∘B·u, y = Re(C·h) + D·u.
//
// Lanes are channels, so that B and C are scalars and nothing is summed across lanes forward. Backward, states
// are made again chunk by chunk, from the first of each, which a pass before has kept.
//
// 2 groups of 40 channels are 4 tiles: 0 .. 31, 32 .. 39 (24 lanes are zero), 40 .. 71, 72 .. 79. In a tile, N = 2 states:
//
//   lane = channel        0   1   ..   31
//   u, step (Δ), y      | .   .        . |     a Row for the present step
//   A[0], A[1]          | .   .        . |     Rows for all steps
//   h[0]                | .   .        . |     h[n] <- a·h[n] + gain·B[t][n]·u     B[t][n], C[t][n]: one number for all
//   h[1]                | .   .        . |     y <- D·u + Re(C[t][0]·h[0]) + Re(C[t][1]·h[1])     lanes of the group
//
//   backward, 70 steps    0 .. 31        32 .. 63       64 .. 69
//   first, forward        h kept at 0    h kept at 32   h kept at 64
//   then, third chunk first: held[0 .. 32], the states of one chunk, are made again, and walked from its last step back
//   sums over lanes       dB[tile][b][t], dC, ddt       sums over time       dA[b], dD, dbias: a number for each lane
#pragma once
#include <algorithm>
#include <vector>

#include "rules.h"

namespace lrnnx::cpu {

constexpr int kTile = 32;    // channels of a tile; what is missing is zero
constexpr int kChunk = 32;   // steps whose states are held at once, backward

struct Selective {
  const void *u, *delta, *A, *B, *C;       // (B, T, D); (D, P, N); (B or 1, T or 1, G, P, N)
  const void *D, *z, *bias, *dt, *h0;      // skip, gate, bias of Δ; elapsed time; first state: may be null
  const int64_t* lengths;
  const bool* reset;
  const void *grad, *grad_last;            // backward only
  void *y, *last;                          // forward only
  void *du, *ddelta, *dz, *dh0;            // backward only, as are these sums:
  void *dA, *dD, *dbias;                   // for each batch element
  void *dB, *dC, *ddt;                     // for each tile of a group, (tiles, B, T or 1, G, P, N); of all, (tiles, B, T)
  int64_t batch, time, channels, groups, states;
  int64_t b_batch, b_time, c_batch, c_time;                               // strides, of 0 where B or C are constant
  bool softplus;

  int64_t share() const { return channels / groups; }                     // channels of a group
  int64_t tiles() const { return (share() + kTile - 1) / kTile; }         // of a group
};

template <class S>
struct Row {  // a number for each channel of a tile
  alignas(64) S v[kTile] = {};

  template <class F>
  INLINE void fill(const F& f) {
    INDEPENDENT
    for (int i = 0; i < kTile; i++) v[i] = f(i);
  }
  void load(const S* from, int width) {
    if (from && width == kTile) {
      std::memcpy(v, from, sizeof v);
    } else {
      for (int i = 0; i < kTile; i++) v[i] = from && i < width ? from[i] : S(0);
    }
  }
  void store(S* to, int width) const { std::memcpy(to, v, width * sizeof(S)); }

  // Halves are added to each other, in an order that is always the same.
  INLINE S total() const {
    S part[kTile];
    std::memcpy(part, v, sizeof part);
    for (int half = kTile / 2; half > 0; half /= 2) {
      INDEPENDENT
      for (int i = 0; i < half; i++) part[i] += part[i + half];
    }
    return part[0];
  }
};

template <class S, int P>
struct Rows {
  Row<S> plane[P];

  INLINE Number<S, P> get(int i) const { return number<P>(plane[0].v[i], plane[P - 1].v[i]); }
  INLINE void put(int i, const Number<S, P>& x) {
    plane[0].v[i] = x.re();
    if constexpr (P == 2) plane[1].v[i] = x.im();
  }
};

template <class S, int P, int RULE>
class Tile {
  using Lane = Number<S, P>;
  using State = std::vector<Rows<S, P>>;  // N of them
  static constexpr bool TURNS = kTurns<P, RULE>;

  const Selective& p;
  const int64_t b, group, tile, first, N, T, D;
  const int width;
  const int64_t length;
  State A;
  Row<S> skip, bias, u, step, raw, fastest;  // fastest: largest |Im λ| of each channel
  S elapsed = 1;
  bool far = false;

 public:
  Tile(const Selective& p, int64_t b, int64_t group, int64_t tile)
      : p(p), b(b), group(group), tile(tile), first(group * p.share() + tile * kTile), N(p.states), T(p.time),
        D(p.channels), width(static_cast<int>(std::min<int64_t>(kTile, p.share() - tile * kTile))),
        length(p.lengths ? std::clamp<int64_t>(p.lengths[b], 0, p.time) : p.time), A(N) {
    gather(static_cast<const S*>(p.A), first, A);
    for (const Rows<S, P>& lambda : A)
      fastest.fill([&](int i) INLINED { return std::max(fastest.v[i], std::abs(lambda.get(i).im())); });
    skip.load(p.D ? static_cast<const S*>(p.D) + first : nullptr, width);
    bias.load(p.bias ? static_cast<const S*>(p.bias) + first : nullptr, width);
  }

  void forward() {
    State h(N);
    if (p.h0) gather(static_cast<const S*>(p.h0), b * D + first, h);
    for (int64_t t = 0; t < length; t++) {
      advance(t, h);
      Row<S> y = read(t, h);
      if (p.z) {
        Row<S> z;
        z.load(at(p.z, t), width);
        y.fill([&](int i) INLINED { return y.v[i] * z.v[i] * sigmoid(z.v[i]); });
      }
      y.store(at(p.y, t), width);
    }
    for (int64_t t = length; t < T; t++) std::memset(at(p.y, t), 0, width * sizeof(S));
    scatter(h, static_cast<S*>(p.last), b * D + first);
  }

  void backward() {
    const int64_t chunks = (length + kChunk - 1) / kChunk;
    std::vector<State> begins(chunks, State(N)), held(kChunk + 1, State(N));
    State h(N), carry(N), dA(N);
    if (p.h0) gather(static_cast<const S*>(p.h0), b * D + first, h);
    for (int64_t t = 0; t < length; t++) {
      if (t % kChunk == 0) begins[t / kChunk] = h;
      if (chunks > 1 && t < (chunks - 1) * kChunk) advance(t, h);
    }
    gather(static_cast<const S*>(p.grad_last), b * D + first, carry);
    Row<S> d_skip, d_bias;
    for (int64_t t = length; t < T; t++) {
      for (void* out : {p.du, p.ddelta, p.dz})
        if (out) std::memset(at(out, t), 0, width * sizeof(S));
      if (p.ddt) *of_time(p.ddt, t) = 0;
    }
    for (int64_t t = p.b_time ? length : 0; t < (p.b_time ? T : 1); t++)
      std::memset(of_group(p.dB, p.b_time, t), 0, P * N * sizeof(S));
    for (int64_t t = p.c_time ? length : 0; t < (p.c_time ? T : 1); t++)
      std::memset(of_group(p.dC, p.c_time, t), 0, P * N * sizeof(S));
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
      const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, length);
      held[0] = begins[chunk];
      for (int64_t t = begin; t < end; t++) {
        held[t - begin + 1] = held[t - begin];
        advance(t, held[t - begin + 1]);
      }
      for (int64_t t = end - 1; t >= begin; t--)
        retreat(t, held[t - begin], held[t - begin + 1], carry, dA, d_skip, d_bias);
    }
    scatter(carry, static_cast<S*>(p.dh0), b * D + first);
    scatter(dA, static_cast<S*>(p.dA), b * D + first);
    if (p.dD) d_skip.store(static_cast<S*>(p.dD) + b * D + first, width);
    if (p.dbias) d_bias.store(static_cast<S*>(p.dbias) + b * D + first, width);
  }

 private:
  template <class X>
  auto at(X* base, int64_t t) const {
    using E = std::conditional_t<std::is_const_v<X>, const S, S>;
    return static_cast<E*>(base) + (b * T + t) * D + first;
  }
  S* of_group(void* base, int64_t stride, int64_t t) const {
    const int64_t row = stride ? (tile * p.batch + b) * T + t : tile * p.batch + b;
    return static_cast<S*>(base) + (row * p.groups + group) * P * N;
  }
  S* of_time(void* base, int64_t t) const {
    return static_cast<S*>(base) + ((group * p.tiles() + tile) * p.batch + b) * T + t;
  }
  const S* input(const void* base, int64_t batch, int64_t time, int64_t t) const {
    return static_cast<const S*>(base) + b * batch + t * time + group * P * N;
  }
  bool cut(int64_t t) const { return p.reset && p.reset[b * T + t]; }
  Lane scalar(const S* row, int64_t n) const { return number<P>(row[n], row[(P - 1) * N + n]); }

  // From (D, P, N) in memory to lanes of channels, and back.
  void gather(const S* from, int64_t row, State& to) const {
    for (int64_t n = 0; n < N; n++)
      for (int plane = 0; plane < P; plane++)
        for (int i = 0; i < kTile; i++)
          to[n].plane[plane].v[i] = i < width ? from[((row + i) * P + plane) * N + n] : S(0);
  }
  void scatter(const State& from, S* to, int64_t row) const {
    for (int64_t n = 0; n < N; n++)
      for (int plane = 0; plane < P; plane++)
        for (int i = 0; i < width; i++) to[((row + i) * P + plane) * N + n] = from[n].plane[plane].v[i];
  }

  void seek(int64_t t) {
    u.load(at(p.u, t), width);
    raw.load(at(p.delta, t), width);
    raw.fill([&](int i) INLINED { return raw.v[i] + bias.v[i]; });
    if (p.softplus)
      step.fill([&](int i) INLINED { return softplus(raw.v[i]); });
    else
      step = raw;
    elapsed = p.dt ? static_cast<const S*>(p.dt)[b * T + t] : S(1);
    if constexpr (TURNS) {
      const S longest = std::max(S(1), std::abs(elapsed));
      int near = 1;
      for (int i = 0; i < kTile; i++) near &= !distant(fastest.v[i] * step.v[i] * longest);
      far = !near;
    }
  }

  void advance(int64_t t, State& h) {
    seek(t);
    if (cut(t)) std::fill(h.begin(), h.end(), Rows<S, P>{});
    if constexpr (TURNS)
      if (far) return turn<true>(t, h);
    turn<false>(t, h);
  }

  template <bool DISTANT>
  INLINE void turn(int64_t t, State& h) const {
    const S* const B = input(p.B, p.b_batch, p.b_time, t);
    for (int64_t n = 0; n < N; n++) {
      const Lane weight = scalar(B, n);
      const Rows<S, P>& lambda = A[n];
      Rows<S, P>& state = h[n];
      INDEPENDENT
      for (int i = 0; i < kTile; i++) {
        const Made<S, P, RULE, DISTANT> made(lambda.get(i), step.v[i] * elapsed, step.v[i]);
        state.put(i, made.a * state.get(i) + u.v[i] * made.drive(weight));
      }
    }
  }

  Row<S> read(int64_t t, const State& h) const {
    const S* const C = input(p.C, p.c_batch, p.c_time, t);
    Row<S> y;
    y.fill([&](int i) INLINED { return skip.v[i] * u.v[i]; });
    for (int64_t n = 0; n < N; n++) {
      const Lane weight = conj(scalar(C, n));
      const Rows<S, P>& state = h[n];
      y.fill([&](int i) INLINED { return y.v[i] + dot(weight, state.get(i)); });
    }
    return y;
  }

  void retreat(int64_t t, const State& before, const State& after, State& carry, State& dA, Row<S>& d_skip,
               Row<S>& d_bias) {
    seek(t);
    if constexpr (TURNS)
      if (far) return pull<true>(t, before, after, carry, dA, d_skip, d_bias);
    pull<false>(t, before, after, carry, dA, d_skip, d_bias);
  }

  template <bool DISTANT>
  INLINE void pull(int64_t t, const State& before, const State& after, State& carry, State& dA, Row<S>& d_skip,
            Row<S>& d_bias) const {
    Row<S> dy, du, d_step, d_elapsed;
    dy.load(at(p.grad, t), width);
    if (p.z) {
      Row<S> z, dz;
      const Row<S> y = read(t, after);
      z.load(at(p.z, t), width);
      dz.fill([&](int i) INLINED {
        const S s = sigmoid(z.v[i]);
        return dy.v[i] * y.v[i] * s * (1 + z.v[i] * (1 - s));
      });
      dz.store(at(p.dz, t), width);
      dy.fill([&](int i) INLINED { return dy.v[i] * z.v[i] * sigmoid(z.v[i]); });
    }
    du.fill([&](int i) INLINED { return skip.v[i] * dy.v[i]; });
    d_skip.fill([&](int i) INLINED { return fused(dy.v[i], u.v[i], d_skip.v[i]); });
    const S *const B = input(p.B, p.b_batch, p.b_time, t), *const C = input(p.C, p.c_batch, p.c_time, t);
    S *const dB = of_group(p.dB, p.b_time, t), *const dC = of_group(p.dC, p.c_time, t);
    const bool fresh = cut(t);
    const Rows<S, P> none{};
    for (int64_t n = 0; n < N; n++) {
      const Lane weight = scalar(B, n), out = conj(scalar(C, n));
      const Rows<S, P>&lambda = A[n], &held = fresh ? none : before[n];
      Rows<S, P> of_B, of_C;
      INDEPENDENT
      for (int i = 0; i < kTile; i++) {
        const Lane g = carry[n].get(i) + dy.v[i] * out, h = held.get(i);
        const Made<S, P, RULE, DISTANT> made(lambda.get(i), step.v[i] * elapsed, step.v[i]);
        const Lane of_input = made.pull_drive(g);
        const auto pulled = made.pull(lambda.get(i), conj(h) * g, u.v[i] * (conj(weight) * g));
        of_C.put(i, dy.v[i] * conj(after[n].get(i)));
        of_B.put(i, u.v[i] * of_input);
        du.v[i] += dot(weight, of_input);
        d_step.v[i] += fused(pulled.span, elapsed, pulled.part);
        d_elapsed.v[i] += pulled.span * step.v[i];
        dA[n].put(i, dA[n].get(i) + pulled.rate);
        carry[n].put(i, conj(made.a) * g);
      }
      if (fresh) carry[n] = none;  // after the loop, which a condition inside keeps from vectors
      for (int plane = 0; plane < P; plane++) {
        S &to_B = dB[plane * N + n], &to_C = dC[plane * N + n];
        to_B = of_B.plane[plane].total() + (p.b_time ? S(0) : to_B);
        to_C = of_C.plane[plane].total() + (p.c_time ? S(0) : to_C);
      }
    }
    if (p.softplus) d_step.fill([&](int i) INLINED { return d_step.v[i] * sigmoid(raw.v[i]); });
    d_bias.fill([&](int i) INLINED { return d_bias.v[i] + d_step.v[i]; });
    du.store(at(p.du, t), width);
    d_step.store(at(p.ddelta, t), width);
    if (p.ddt) *of_time(p.ddt, t) = d_elapsed.total();
  }
};

}  // namespace lrnnx::cpu
