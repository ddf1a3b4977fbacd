// How a rule turns an eigenvalue λ, a learned step Δ and elapsed time δ into coefficient and gain; its derivatives.
//
// Each lane of a loop is a channel (or a state). It has λ, Δ and δ in vector registers, and makes, with w = λ·Δ·δ:
//
//   rule       dirac    euler    zoh              bilinear               asynchronous
//   a          e^w      e^w      e^w              (1 + w/2)/(1 − w/2)    e^w
//   gain       1        Δ·δ      (e^w − 1)/λ      Δ·δ/(1 − w/2)          (e^(λ·Δ) − 1)/λ
#pragma once
#include <cmath>

#include "../rule.h"
#include "lanes.h"

namespace lrnnx::cpu {

// (e^w − 1)/w from less_one = e^w − 1, continued at w = 0.
template <class S, int P>
INLINE Number<S, P> less_one_over(const Number<S, P>& w, const Number<S, P>& less_one) {
  const bool tiny = dot(w, w) < Real<S>::EPSILON * Real<S>::EPSILON;
  const Number<S, P> one = number<P>(S(1), S(0));
  return select(tiny, one + S(0.5) * w, less_one * inverse(select(tiny, one, w)));
}

// Its derivative, (e^w − (e^w − 1)/w)/w, as the series Σ (k + 1) w^k/(k + 2)! where that cancels.
template <class S, int P>
INLINE Number<S, P> slope_of_that(const Number<S, P>& w, const Number<S, P>& a, const Number<S, P>& over) {
  constexpr int terms = Real<S>::TERMS;
  const bool small = dot(w, w) < S(0.09);
  const Number<S, P> one = number<P>(S(1), S(0)), near = select(small, w, S(0) * one);
  Number<S, P> sum = S(terms * inverse_factorial(terms + 1)) * one;
  for (int k = terms - 2; k >= 0; k--) sum = S((k + 1) * inverse_factorial(k + 2)) * one + near * sum;
  return select(small, sum, (a + S(-1) * over) * inverse(select(small, one, w)));
}

// e^(rate·span) and that less 1. The product's rounding error is turned by as well: a large phase costs no digits.
// DISTANT: for a phase of any size, slowly.
template <class S, int P, bool DISTANT = false>
struct Grown {
  Number<S, P> value, less_one;

  INLINE Grown(const Number<S, P>& rate, S span) {
    const Exp<S> size(rate.re() * span);
    if constexpr (P == 1) {
      value = number<1>(size.value, S(0));
      less_one = number<1>(size.less_one, S(0));
    } else if constexpr (DISTANT) {
      const double phase = double(rate.im()) * double(span);
      turn(size, FarSinCos<S>(phase, std::fma(double(rate.im()), double(span), -phase)));
    } else {
      const S phase = rate.im() * span;
      turn(size, SinCos<S>(phase, fused(rate.im(), span, -phase)));
    }
  }

 private:
  template <class Turn>
  INLINE void turn(const Exp<S>& size, const Turn& turn) {
    value = number<2>(size.value * turn.cos, size.value * turn.sin);
    less_one = number<2>(fused(size.less_one, turn.cos, turn.cos_less_one), value.im());
  }
};

template <class S, int P, int RULE, bool DISTANT = false>
struct Made {
  static_assert(kRules == 5, "a rule of rules.def is missing below");
  Number<S, P> a, gain;

  struct Pulled {
    Number<S, P> lambda;
    S step, elapsed;
  };

  INLINE Made(const Number<S, P>& lambda, S step, S elapsed) {
    const Number<S, P> one = number<P>(S(1), S(0));
    const S span = step * elapsed;
    if constexpr (RULE == kBilinear) {
      const Number<S, P> half = (S(0.5) * span) * lambda, over = inverse(one + S(-1) * half);
      a = (one + half) * over;
      gain = span * over;
    } else {
      const Grown<S, P, DISTANT> grown(lambda, span);
      a = number<P>(grown.value.re(), grown.value.im());  // member by member: compilers vectorize no copies
      gain = number<P>(S(1), S(0));
      if constexpr (RULE == kEuler) gain = span * one;
      if constexpr (RULE == kZoh) gain = span * less_one_over(span * lambda, grown.less_one);
      if constexpr (RULE == kAsynchronous)
        gain = step * less_one_over(step * lambda, Grown<S, P, DISTANT>(lambda, step).less_one);
    }
  }

  // Gradients of λ, Δ and δ from those of a and gain.
  INLINE Pulled pull(const Number<S, P>& lambda, S step, S elapsed, const Number<S, P>& of_a,
                     const Number<S, P>& of_gain) const {
    const S span = step * elapsed;
    Number<S, P> over{}, a_by_w = a;
    if constexpr (RULE == kBilinear) {
      over = inverse(number<P>(S(1), S(0)) + (S(-0.5) * span) * lambda);
      a_by_w = over * over;
    }
    const Number<S, P> by_w = conj(a_by_w) * of_a;
    Number<S, P> by_lambda = span * by_w;
    S by_span = dot(lambda, by_w), by_step = 0;
    if constexpr (RULE == kEuler) by_span += of_gain.re();
    if constexpr (RULE == kBilinear) {
      by_span += dot(a_by_w, of_gain);
      by_lambda = by_lambda + (S(0.5) * span * span) * (conj(a_by_w) * of_gain);
    }
    if constexpr (RULE == kZoh) {
      const Number<S, P> w = span * lambda;
      const Grown<S, P, DISTANT> grown(lambda, span);
      const Number<S, P> slope = slope_of_that(w, a, less_one_over(w, grown.less_one));
      by_span += dot(a, of_gain);
      by_lambda = by_lambda + (span * span) * (conj(slope) * of_gain);
    }
    if constexpr (RULE == kAsynchronous) {
      const Number<S, P> w = step * lambda;
      const Grown<S, P, DISTANT> grown(lambda, step);
      const Number<S, P> slope = slope_of_that(w, grown.value, less_one_over(w, grown.less_one));
      by_step = dot(grown.value, of_gain);
      by_lambda = by_lambda + (step * step) * (conj(slope) * of_gain);
    }
    return {by_lambda, fused(by_span, elapsed, by_step), by_span * step};
  }
};

// log(1 + e^x), and its derivative, without cancellation: log(1 + e) = 2 artanh(e/(2 + e)).
template <class S>
INLINE S softplus(S x) {
  constexpr int terms = sizeof(S) == 4 ? 8 : 17;
  const S size = x < 0 ? -x : x, e = Exp<S>(-size).value, r = e / (2 + e), q = r * r;
  S sum = S(1) / (2 * terms + 1);
  for (int k = terms - 1; k >= 0; k--) sum = fused(q, sum, S(1) / (2 * k + 1));
  return fused(2 * r, sum, x < 0 ? S(0) : x);
}

}  // namespace lrnnx::cpu
