// The rules of ../rules.h for vectors: a and gain of each lane, and their derivatives.
//
// Each lane of a loop is a channel (or a state). It has λ, and the span Δ·δ, in vector registers.
#pragma once
#include <cmath>

#include "../by_rule.h"
#include "lanes.h"

namespace lrnnx::cpu {

// (e^w − 1)/w from less_one = e^w − 1, continued at w = 0.
template <class S, int P>
INLINE Number<S, P> less_one_over(const Number<S, P>& w, const Number<S, P>& less_one) {
  const bool tiny = dot(w, w) < Real<S>::EPSILON * Real<S>::EPSILON;
  const Number<S, P> one = number<P>(S(1), S(0));
  return select(tiny, one + S(0.5) * w, less_one * inverse(select(tiny, one, w)));
}

// Σ (k + 1) w^k/(k + 2)!, from the term K on and without w^K. No loop: one that is not unrolled leaves the lanes scalar.
template <int K, class S, int P>
INLINE Number<S, P> slope_series(const Number<S, P>& w) {
  const Number<S, P> term = number<P>(S((K + 1) * inverse_factorial(K + 2)), S(0));
  if constexpr (K + 1 == Real<S>::TERMS)
    return term;
  else
    return term + w * slope_series<K + 1>(w);
}

// Its derivative, (e^w − (e^w − 1)/w)/w, as that series where it cancels.
template <class S, int P>
INLINE Number<S, P> slope_of_that(const Number<S, P>& w, const Number<S, P>& a, const Number<S, P>& over) {
  const bool small = dot(w, w) < S(0.09);
  const Number<S, P> one = number<P>(S(1), S(0)), near = select(small, w, S(0) * one);
  return select(small, slope_series<0>(near), (a + S(-1) * over) * inverse(select(small, one, w)));
}

// e^(rate·span) and that less 1. The product's rounding error is turned by as well: a large phase costs no digits.
// DISTANT: for a phase of any size, slowly.
template <class S, int P, bool DISTANT = false>
struct Grown {
  Number<S, P> value, less_one;

  INLINE operator Number<S, P>() const { return number<P>(value.re(), value.im()); }
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

// Arithmetic as the formulas of ../rules.h write it.
template <class S, int P>
INLINE Number<S, P> scale(S s, const Number<S, P>& x) {
  return s * x;
}
template <class S, int P>
INLINE Number<S, P> mul(const Number<S, P>& x, const Number<S, P>& y) {
  return x * y;
}
template <class S, int P>
INLINE Number<S, P> mad(S s, const Number<S, P>& x, const Number<S, P>& y) {
  return s * x + y;
}
template <class S, int P>
INLINE Number<S, P> mad(const Number<S, P>& x, const Number<S, P>& y, const Number<S, P>& z) {
  return x * y + z;
}

// λ, and what else they compute with.
template <class S, int P, bool DISTANT>
struct Rate {
  using X = Number<S, P>;
  using Power = Grown<S, P, DISTANT>;  // e^w
  X rate;

  INLINE static X real(S x) { return number<P>(x, S(0)); }
  INLINE static X one() { return real(S(1)); }
  INLINE static X inverse(const X& x) { return cpu::inverse(x); }
  INLINE rules::Growth<X> growth(S span, const Power& power) const {
    const X w = span * rate, over = less_one_over(w, power.less_one);
    return {span * over, (span * span) * slope_of_that(w, power.value, over)};
  }
};

// x, member by member: compilers vectorize no loop that copies whole ones.
template <class S, int P>
INLINE Number<S, P> same(const Number<S, P>& x) {
  return number<P>(x.re(), x.im());
}

// a of a rule over a span; its gain over the same, or where it is split over Δ alone: over `part`.
template <class S, int P, int RULE, bool DISTANT>
struct Made {
  using Kind = rules::Of<RULE>;
  using M = Rate<S, P, DISTANT>;
  using X = Number<S, P>;
  static constexpr bool SPLIT = rules::kSplit<Kind>;
  X a, gain, gain_by_rate, gain_by_span;  // of the gain only where it is a rule's own
  S span;

  INLINE Made(const X& rate, S span, S part) : span(span) {
    const M m{rate};
    if constexpr (Kind::EXPONENTIAL) {
      const typename M::Power power(rate, span);
      a = same(power.value);
      if constexpr (SPLIT)
        keep(Kind::gain(m, part, typename M::Power(rate, part)));
      else if constexpr (Kind::GAIN == rules::kOwn)
        keep(Kind::gain(m, span, power));
    } else {
      a = Kind::decay(m, span);
      keep(Kind::gain(m, span, a));
    }
  }

  // gain∘x, and the gradient of x from that of it
  INLINE X drive(const X& x) const {
    if constexpr (Kind::GAIN == rules::kOwn) return gain * x;
    if constexpr (Kind::GAIN == rules::kReal) return span * x;
    return same(x);
  }
  INLINE X pull_drive(const X& g) const {
    if constexpr (Kind::GAIN == rules::kOwn) return conj(gain) * g;
    return drive(g);
  }

  // Gradients of λ and of both spans from those of a and gain.
  struct Pulled {
    X rate;
    S span, part;
  };
  INLINE Pulled pull(const X& rate, const X& of_a, const X& of_gain) const {
    X by_w;
    if constexpr (Kind::EXPONENTIAL)
      by_w = conj(a) * of_a;
    else
      by_w = conj(gain_by_span) * of_a;
    X by_rate = span * by_w;
    S by_span = dot(rate, by_w), by_part = 0;
    if constexpr (Kind::GAIN == rules::kReal) by_span += of_gain.re();
    if constexpr (Kind::GAIN == rules::kOwn) {
      by_rate = by_rate + conj(gain_by_rate) * of_gain;
      (SPLIT ? by_part : by_span) += dot(gain_by_span, of_gain);
    }
    return {by_rate, by_span, by_part};
  }

 private:
  INLINE void keep(const rules::Gain<X>& made) {
    gain = same(made.value);
    gain_by_rate = same(made.by_rate);
    gain_by_span = same(made.by_span);
  }
};

// Whether phases may be distant.
template <int P, int RULE>
constexpr bool kTurns = P == 2 && rules::Of<RULE>::EXPONENTIAL;

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
