// Coefficients made from a rate z for each channel and the time dt before each step, as `discretized_scan` defines.
//
// exp(z dt) of a complex z in float, in the registers of a thread, without losing digits of a large phase:
//
//   once           Im z / pi = turns + rest      two floats, so that no digit is lost
//   at a step      phase = turns dt, rounded; error = what was rounded off + rest dt; both in half turns
//                  quarter = the nearest number of quarter turns; f = phase - quarter / 2 + error, at most 1/4
//                  sin(pi f), cos(pi f) by polynomials; `quarter` says which is which, and their signs
#pragma once
#include "../by_rule.h"
#include "source.cuh"

namespace lrnnx::cuda {

constexpr float kDistant = 1 << 20;  // half turns beyond which a float has too few bits to count quarters in

// The phase (turns + rest) dt in half turns, less whole turns, for a phase of any size. Im z is computed again in double,
// so that its product with dt is exact. Whole turns are taken off in two rounds, since there may be very many.
static __device__ __noinline__ float near_phase(float turns, float rest, float dt) {
  const double pi = 3.141592653589793;
  double w = double(static_cast<float>((double(turns) + double(rest)) * pi)) * double(dt);
  UNROLL for (int round = 0; round < 2; round++) {
    const double count = rint(w * (0.5 / pi));
    w = fma(-count, 2 * pi, w);
    w = fma(-count, 2.4492935982947064e-16, w);
    w = fma(-count, -5.9895396194366793e-33, w);
  }
  return static_cast<float>(w * (1 / pi));
}

// exp(z dt), or of conj(z).
template <class S, int PL, int V>
struct Exponential {
  static constexpr S LOG2E = PL == 2 ? 1.4426950408889634 : 1;
  static constexpr bool SINGLE = PL == 2 && sizeof(S) == 4;  // whose phases may be distant
  S re[V], turns[V], rest[V];  // Re z LOG2E; +-Im z / pi = turns + rest
  S longest;                   // dt, beyond which a phase is distant

  DEVICE void init(const Val<S, PL, V>& z) {
    UNROLL for (int i = 0; i < V; i++) {
      const double w = PL == 2 ? z.v[PL - 1][i] * 0.31830988618379067 : 0.;
      re[i] = static_cast<S>(z.v[0][i] * double(LOG2E));
      turns[i] = static_cast<S>(w);
      rest[i] = static_cast<S>(w - double(turns[i]));
    }
    find_longest();
  }
  DEVICE void find_longest() {
    S most = 0;
    UNROLL for (int i = 0; i < V; i++) most = max(most, fabs(turns[i]));
    longest = kDistant / most;
  }
  DEVICE bool far(S dt) const { return SINGLE && dt > longest; }
  // FAR: also where phases are distant. The others, without a call, overlap with what is beside them.
  template <bool FAR>
  DEVICE Val<S, PL, V> at(S dt) const {
    Val<S, PL, V> r;
    if constexpr (SINGLE) {
      float phase[V], error[V];
      UNROLL for (int i = 0; i < V; i++) {
        phase[i] = turns[i] * dt;
        error[i] = fmaf(rest[i], dt, fmaf(turns[i], dt, -phase[i]));
      }
      if (FAR) UNROLL for (int i = 0; i < V; i++) {
        phase[i] = near_phase(turns[i], rest[i], dt);
        error[i] = 0;
      }
      UNROLL for (int i = 0; i < V; i++)
        rotate(power_of_two(re[i] * dt), phase[i], error[i], r.v[0][i], r.v[1][i]);
    } else UNROLL for (int i = 0; i < V; i++) {
      if constexpr (PL == 1) {
        r.v[0][i] = decay(re[i] * dt);
      } else {
        S s, c;
        sincospi(fma(turns[i], dt, rest[i] * dt), &s, &c);
        r.v[0][i] = exp2(re[i] * dt) * c;
        r.v[1][i] = exp2(re[i] * dt) * s;
      }
    }
    return r;
  }
  // The phase in half turns is reduced exactly to a quadrant: a large phase costs no digits.
  DEVICE static void rotate(float size, float phase, float error, float& out_re, float& out_im) {
    const float shifted = fmaf(phase, 2.f, 12582912.f);  // its low bits: the nearest count of quarter turns
    const uint32_t quarter = __float_as_uint(shifted);
    const float f = fmaf(shifted - 12582912.f, -0.5f, phase) + error, q = f * f;
    const float s = f * fmaf(q, fmaf(q, fmaf(q, fmaf(q, 0.08214589f, -0.59926453f), 2.55016404f), -5.16771278f), 3.14159265f);
    const float c = fmaf(q, fmaf(q, fmaf(q, fmaf(q, 0.23533063f, -1.33526277f), 4.05871213f), -4.93480220f), 1.f);
    const float x = quarter & 1 ? s : c, y = quarter & 1 ? c : s;
    out_re = size * __uint_as_float(__float_as_uint(x) ^ (((quarter + 1) & 2) << 30));
    out_im = size * __uint_as_float(__float_as_uint(y) ^ ((quarter & 2) << 30));
  }
  // Sum over these channels of Re(q z).
  DEVICE S along(const Val<S, PL, V>& q) const {
    S sum = 0;
    UNROLL for (int i = 0; i < V; i++) {
      sum = fma(q.v[0][i], re[i] * (1 / LOG2E), sum);
      if constexpr (PL == 2) sum = fma(q.v[1][i], turns[i] * S(-3.14159265358979324), sum);
    }
    return sum;
  }
};

// With q = conj(a) g conj(h), the gradient of w = z dt: that of z is the sum of q dt, that of dt is Re(q conj(z)).
template <class S, int PL, int V, bool BWD>
struct Impulse {  // a gain of 1
  static constexpr int EXTRA = 0, OUT = 0;
  static constexpr bool STRIDED = false, CONSTANT = false, TIMED = true, KEEP_A = true, KEEP_X = false, UNITS = false;
  using X = Val<S, PL, V>;
  using In = Inputs<S, X, EXTRA>;
  Exponential<S, PL, V> exponential;

  DEVICE void init(const Params& p, int n) {
    const X z = channel_values<S, PL, V>(p.a, n, p.N);
    exponential.init(BWD ? conj(z) : z);
  }
  DEVICE bool far(const In& in) const { return exponential.far(in.dt); }
  template <bool FAR>
  DEVICE X at(const In& in) const { return exponential.template at<FAR>(in.dt); }
  DEVICE X drive(const In&, const X&, const X& x) const { return x; }
  DEVICE X backward(const In& in, const X&, const X& g, const X& next, const X& h, X*, X& sum, S& along) const {
    const X q = mul(next, conj(h));
    sum = mad(in.dt, q, sum);
    along = exponential.along(q);
    return g;
  }
};

// Any rule. Backward z is conjugated, and with it everything made from it.
template <class S, int PL, int V, bool BWD>
struct Ruled {
  static constexpr int EXTRA = BWD, OUT = 0;
  static constexpr bool STRIDED = false, CONSTANT = false, TIMED = true, KEEP_A = true, KEEP_X = false, UNITS = false;
  static constexpr int TERMS = sizeof(S) == 8 ? 14 : 7;
  using X = Val<S, PL, V>;
  using In = Inputs<S, X, EXTRA>;
  using Gain = rules::Gain<X>;
  Exponential<S, PL, V> exponential;
  X rate;
  int rule;

  DEVICE void init(const Params& p, int n) {
    rule = p.rule;
    rate = channel_values<S, PL, V>(p.a, n, p.N);
    if (BWD) rate = conj(rate);
    exponential.init(rate);
  }
  DEVICE bool far(const In& in) const { return !rules::is<rules::Rational>(rule) && exponential.far(in.dt); }
  template <bool FAR>
  DEVICE X at(const In& in) const {
    X a;
    if (rules::run<rules::Rational>(rule, [&](auto kind) { a = kind.decay(*this, in.dt); })) return a;
    return exponential.template at<FAR>(in.dt);
  }
  // The ladder is written out. Through a lambda nvcc makes 3 % more instructions of it.
  DEVICE Gain gain(const In& in, const X& a) const {
    Gain r{one(), X{}, X{}};
    if (false) {
    }
#define RULE(number, name, Kind) \
  else if (rules::Gaining<rules::Kind>::value && rule == number) r = rules::Kind::gain(*this, in.dt, a);
    LRNNX_RULES(RULE)
#undef RULE
    return r;
  }
  DEVICE X drive(const In& in, const X& a, const X& x) const { return mul(gain(in, a).value, x); }
  DEVICE X backward(const In& in, const X& a, const X& g, const X&, const X& h, X*, X& sum, S& along) const {
    const Gain r = gain(in, a);
    const X by_w = rules::is<rules::Rational>(rule) ? r.by_span : a;
    const X q = mul(by_w, mul(g, conj(h))), of_gain = mul(g, conj(in.raw[0]));
    sum = mad(r.by_rate, of_gain, mad(in.dt, q, sum));
    along = real_sum(mad(r.by_span, of_gain, mul(rate, q)));
    return mul(r.value, g);
  }
  // For the formulas of rules.h.
  DEVICE static X real(S x) { return real_number<S, PL, V>(x); }
  DEVICE static X one() { return real(1); }
  DEVICE static X inverse(const X& x) { return invert(x); }
  DEVICE rules::Growth<X> growth(S span, const X& e) const {
    X phi, slope;
    mean_decay(scale(span, rate), e, phi, slope);
    return {scale(span, phi), scale(span * span, slope)};
  }
  // phi = (a - 1) / w with a = exp(w), and its derivative (a - phi) / w; series where those would cancel.
  DEVICE static void mean_decay(const X& w, const X& a, X& phi, X& slope) {
    X near = one(), near_slope = one();
    UNROLL for (int k = TERMS; k > 0; k--) {
      if (k > 1) near = mad(S(1) / k, mul(w, near), one());
      near_slope = mad(S(k + 1) / S(k * (k + 2)), mul(w, near_slope), one());
    }
    const X over = invert(w);
    phi = mul(over, mad(S(-1), one(), a));
    slope = mul(over, mad(S(-1), phi, a));
    UNROLL for (int e = 0; e < PL * V; e++) {
      const int i = e % V;
      const bool small = fabs(w.v[0][i]) < S(0.25) && fabs(w.v[PL - 1][i]) < S(0.25);
      phi.v[e / V][i] = small ? near.v[e / V][i] : phi.v[e / V][i];
      slope.v[e / V][i] = small ? S(0.5) * near_slope.v[e / V][i] : slope.v[e / V][i];
    }
  }
};

}  // namespace lrnnx::cuda
