// The rules of discretization that have kernels: all that the kernels know of them, on a CPU and on a GPU.
//
// A rule makes h[t] = a∘h[t−1] + gain∘(Bu)[t] of h' = λh + Bu. Over a span = Δ·δ, and with w = λ·span:
//
//   rule       dirac    euler    zoh              bilinear               asynchronous
//   a          e^w      e^w      e^w              (1 + w/2)/(1 − w/2)    e^w
//   gain       1        span     (e^w − 1)/λ      span/(1 − w/2)         (e^(λ·Δ) − 1)/λ
//
// A rule is a struct with
//
//   EXPONENTIAL         a is e^w, which each kernel makes in its own way; else the rule has decay(m, span), which is a
//   GAIN                kUnit: 1; kReal: the span; kOwn: a number that differs from state to state
//   Evenly              void; or the rule that it equals where every δ is 1: it has the gain of that, over Δ alone
//   gain(m, span, e)    the gain, and its derivatives; e is e^w if EXPONENTIAL
//
// and a line at the end. A rule that is not exponential leaves a constant input's state at rest, −Bu/λ, as every one-step
// method does: its gain is (a − 1)/λ, so that da/dw is the gain's derivative along the span.
//
// Formulas are written once, for vectors of a CPU and registers of a GPU. What they compute with is `m`:
//
//   m.rate, M::one(), M::real(s), M::inverse(x)    λ (of exponential rules not to be used), 1, s, 1/x
//   m.growth(span, e)                              (e^w − 1)/λ, and its derivative along λ
//   scale(s, x), mul(x, y), mad(s, x, y)           s·x, x·y, s·x + y
#pragma once

#ifdef __CUDACC__
#define FORMULA static __device__ __forceinline__
#else
#define FORMULA static inline __attribute__((always_inline))
#endif

namespace lrnnx::rules {

enum Gains { kUnit, kReal, kOwn };

template <class X>
struct Gain {
  X value, by_rate, by_span;  // and its derivatives along λ and along the span
};

template <class X>
struct Growth {
  X value, by_rate;
};

struct Exponential {
  static constexpr bool EXPONENTIAL = true;
  using Evenly = void;
};

struct Dirac : Exponential {
  static constexpr Gains GAIN = kUnit;
  template <class M, class S, class E, class X = typename M::X>
  FORMULA Gain<X> gain(const M&, S, const E& e) {
    return {M::one(), X{}, X{}};
  }
};

struct Euler : Exponential {
  static constexpr Gains GAIN = kReal;
  template <class M, class S, class E, class X = typename M::X>
  FORMULA Gain<X> gain(const M&, S span, const E& e) {
    return {M::real(span), X{}, M::one()};
  }
};

struct Zoh : Exponential {
  static constexpr Gains GAIN = kOwn;
  template <class M, class S, class E, class X = typename M::X>
  FORMULA Gain<X> gain(const M& m, S span, const E& e) {
    const Growth<X> growth = m.growth(span, e);
    return {growth.value, growth.by_rate, e};
  }
};

struct Bilinear {
  static constexpr bool EXPONENTIAL = false;
  static constexpr Gains GAIN = kOwn;
  using Evenly = void;
  template <class M, class S, class X = typename M::X>
  FORMULA X over(const M& m, S span) {  // 1/(1 − w/2)
    return M::inverse(mad(S(-0.5) * span, m.rate, M::one()));
  }
  template <class M, class S, class X = typename M::X>
  FORMULA X decay(const M& m, S span) {  // 1 + w/(1 − w/2), near 1 rounded once
    return mad(scale(span, m.rate), over(m, span), M::one());
  }
  template <class M, class S, class E, class X = typename M::X>
  FORMULA Gain<X> gain(const M& m, S span, const E&) {
    const X x = over(m, span), square = mul(x, x);
    return {scale(span, x), scale(S(0.5) * span * span, square), square};
  }
};

struct Asynchronous : Zoh {
  using Evenly = Zoh;
};

}  // namespace lrnnx::rules

// RULE(number, name, rule): the numbers of lrnnx_app/ops/rules.py, which `_extension.load` compares with those that a
// library was built with.
#define LRNNX_RULES(RULE)     \
  RULE(0, dirac, Dirac)       \
  RULE(1, zoh, Zoh)           \
  RULE(2, bilinear, Bilinear) \
  RULE(3, euler, Euler)       \
  RULE(4, asynchronous, Asynchronous)
