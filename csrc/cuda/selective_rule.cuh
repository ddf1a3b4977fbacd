// The selective scan's rules: from the eigenvalues of a lane and the span of a step to decay and gain, with derivatives.
//
// A lane has 4 real or 2 complex eigenvalues λ in registers; with w = λ·span, span = Δ·δ, and step = Δ:
//
//   gain of rules.h    drive     gain
//   kUnit (dirac)      u         1
//   kReal (euler)      u·span    1
//   kOwn  (zoh ..)     u         by its formula, of the span, or of the step if it is split
//
//   drive is a number for all states of a channel, from shared memory; decay and gain are made for each state
#pragma once
#include "discretize.cuh"
#include "selective.h"

namespace lrnnx::cuda {

// Re Σ a conj(b)
template <class S, int PL, int V>
DEVICE S dot(const Val<S, PL, V>& a, const Val<S, PL, V>& b, S sum = 0) {
  UNROLL for (int e = 0; e < PL * V; e++) sum = fma(a.v[e / V][e % V], b.v[e / V][e % V], sum);
  return sum;
}

// Real decays are 2^(span · λ log2 e), one multiplication and one exponential, which are most of the work; that of the
// hardware errs to one side by some 1e-8, and a memory of n steps adds n of them up.
template <int PL, int RULE>
struct Rates {
  using Kind = rules::Of<RULE>;
  static constexpr int V = kHeld / PL;
  static constexpr bool EXPONENTIAL = Kind::EXPONENTIAL, SPLIT = rules::kSplit<Kind>;
  static constexpr bool DRIVEN = Kind::GAIN == rules::kReal;
  static constexpr bool SHAPED = Kind::GAIN == rules::kOwn;  // the gain differs from state to state
  static constexpr bool POWERS = EXPONENTIAL && PL == 1;     // decays of many steps are those of their sum
  static constexpr bool TURNS = EXPONENTIAL && PL == 2;
  static constexpr float kLongSpan = 1024;
  static constexpr float LOG2E = 1.44269504f;
  static constexpr float UNIT = EXPONENTIAL ? 0.693147181f : 1.f;    // what `along` is to be multiplied by
  static constexpr float IN_SERIES = PL == 1 ? UNIT : 1.f;           // so many of `exponent`'s units are one of w
  static constexpr int TERMS = PL == 2 ? 6 : 5;
  using X = Val<float, PL, V>;

  X rate;                                // λ; of exponential rules the real part is multiplied by log2 e
  X over;                                // 1 / λ, for gains
  Exponential<float, 2, PL == 2 ? V : 1> turning;

  DEVICE void init(const X& z) {
    rate = z;
    if constexpr (SHAPED && EXPONENTIAL) over = invert(z);
    if constexpr (EXPONENTIAL) UNROLL for (int i = 0; i < V; i++) {
      rate.v[0][i] *= LOG2E;
      if constexpr (PL == 2) {  // 1 / pi in two parts
        const float im = z.v[1][i], turns = im * 0.318309873f;
        turning.re[i] = rate.v[0][i];
        turning.turns[i] = turns;
        turning.rest[i] = fmaf(im, 0.318309873f, -turns) + im * 1.28412764e-8f;
      }
    }
  }

  // A phase = span · turns may be too large for the usual code. One thread knows the span, another the turns of a state,
  // so each checks its own factor.
  DEVICE static bool far(float span) { return TURNS && span > kLongSpan; }
  DEVICE static bool any_thread(bool far) {  // of the block, which waits
    if constexpr (TURNS) return __syncthreads_or(far);
    __syncthreads();
    return false;
  }
  DEVICE bool wild() const {
    bool any = false;
    if constexpr (TURNS) UNROLL for (int i = 0; i < V; i++) any |= fabsf(turning.turns[i]) > kDistant / kLongSpan;
    return any;
  }

  DEVICE static X real(float x) { return real_number<float, PL, V>(x); }
  DEVICE static X one() { return real(1); }
  DEVICE static X inverse(const X& x) {
    X r = conj(x);
    UNROLL for (int i = 0; i < V; i++) {
      const float re = r.v[0][i], im = r.v[PL - 1][i];
      if constexpr (PL == 1) {
        r.v[0][i] = reciprocal(re);
      } else {
        const float size = reciprocal(fmaf(re, re, im * im));
        r.v[0][i] = re * size;
        r.v[1][i] = im * size;
      }
    }
    return r;
  }

  // FAR: right also for a long span (`far`) or fast turns (`wild`), and slower.
  template <bool FAR>
  DEVICE X decay(float span) const {
    X r;
    if constexpr (!EXPONENTIAL) {
      r = Kind::decay(*this, span);
    } else if constexpr (PL == 2) {
      r = turning.template at<FAR>(span);
    } else {
      UNROLL for (int i = 0; i < V; i++) r.v[0][i] = power_of_two(span * rate.v[0][i]);
    }
    return r;
  }

  // w = λ · span (real: w log2 e), and whether that is so small that e^w − 1 would cancel
  DEVICE X exponent(float span) const {
    X w = scale(span, rate);
    if constexpr (PL == 2) UNROLL for (int i = 0; i < V; i++) w.v[0][i] *= UNIT;
    return w;
  }
  DEVICE static bool small(const X& w, int i) {
    const bool re = fabsf(w.v[0][i]) < 0.25f / IN_SERIES;
    return PL == 1 ? re : re && fabsf(w.v[PL - 1][i]) < 0.25f;
  }
  // Σ w^k / (k + 1)!, or its derivative Σ (k + 1) w^k / (k + 2)!
  template <bool SLOPE>
  DEVICE static X series(const X& w) {
    X sum = {};
    UNROLL for (int k = TERMS; k >= 0; k--) {
      double c = SLOPE ? k + 1 : 1;
      UNROLL for (int i = 1; i <= k; i++) c *= IN_SERIES;
      UNROLL for (int i = 2; i <= k + 1 + SLOPE; i++) c /= i;
      const X term = real_number<float, PL, V>(static_cast<float>(c));
      sum = k == TERMS ? term : mad(w, sum, term);
    }
    return sum;
  }
  DEVICE static X choose(const X& w, const X& near, const X& far) {
    X r;
    UNROLL for (int e = 0; e < PL * V; e++)
      r.v[e / V][e % V] = small(w, e % V) ? near.v[e / V][e % V] : far.v[e / V][e % V];
    return r;
  }

  // (e − 1) / λ, or its series, where e = e^w; and its derivative (span · e − that) / λ, or span² Σ (k + 1) w^k / (k + 2)!
  DEVICE rules::Growth<X> growth(float span, const X& e) const {
    const X w = exponent(span);
    const X value = choose(w, scale(span, series<false>(w)), mad(over, e, scale(-1.f, over)));
    return {value, choose(w, scale(span * span, series<true>(w)), mul(over, mad(span, e, scale(-1.f, value))))};
  }
  // The factor of u·B over a span of the step, e being the decay over that.
  DEVICE X gain(float span, const X& e) const { return Kind::gain(*this, span, e).value; }

  // Re Σ λ conj(q), to be multiplied by UNIT
  DEVICE float along(const X& q) const {
    if constexpr (PL == 1 || !EXPONENTIAL) return dot(rate, q);
    float re = 0, im = 0;
    UNROLL for (int i = 0; i < V; i++) {
      re = fmaf(rate.v[0][i], q.v[0][i], re);
      im = fmaf(rate.v[PL - 1][i], q.v[PL - 1][i], im);
    }
    return fmaf(im, LOG2E, re);
  }
};

// What the lanes of a channel read at a step. `span` = Δ·δ, from which the decay is made. `drive` = u times the part of
// the gain that is the same for all states. `step` = Δ alone, where the rule makes the gain from it (asynchronous).
struct Handed {
  float span, drive, step;
};

// Gradients at a step. `g` is that of the state after it.
template <int PL, int RULE, bool FAR>
struct Pulled {
  using R = Rates<PL, RULE>;
  using X = typename R::X;
  X before, weight;       // of the state before, and of B
  float input, along;     // of `drive`'s u, and of the span or, where the gain has another, of the decay's alone
  float step;             // in that case, of the gain's

  // a is 0 and h, the state before, is zero where a sequence starts.
  DEVICE Pulled(const R& rates, const Handed& x, const X& a, const X& h, const X& B, const X& g, X& d_lambda) {
    before = mul(conj(a), g);
    step = 0;
    if constexpr (!R::SHAPED) {
      const X q = mul(conj(h), before);
      input = dot(B, g);
      along = R::UNIT * rates.along(q);
      d_lambda = mad(x.span, q, d_lambda);
      weight = scale(x.drive, g);
    } else {
      shaped(rates, x, h, B, g, d_lambda);
    }
  }

 private:
  DEVICE void shaped(const R& rates, const Handed& x, const X& h, const X& B, const X& g, X& d_lambda) {
    const float span = R::SPLIT ? x.step : x.span;  // the gain's
    const X of_gain = scale(x.drive, mul(conj(B), g));
    X e{};
    if constexpr (R::EXPONENTIAL) e = rates.template decay<FAR>(span);  // again, since `a` may have been cut to 0
    const rules::Gain<X> gain = R::Kind::gain(rates, span, e);
    const X q = R::EXPONENTIAL ? mul(conj(h), before) : mul(conj(gain.by_span), mul(conj(h), g));
    const X of_input = mul(conj(gain.value), g);
    input = dot(B, of_input);
    weight = scale(x.drive, of_input);
    d_lambda = mad(conj(gain.by_rate), of_gain, mad(x.span, q, d_lambda));
    along = R::UNIT * rates.along(q);
    (R::SPLIT ? step : along) += dot(gain.by_span, of_gain);
  }
};

}  // namespace lrnnx::cuda
