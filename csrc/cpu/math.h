// exp, expm1 and sincos as straight code, which the compiler vectorizes over channels.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace lrnnx::cpu {

#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))  // of a lambda

template <class To, class From>
INLINE To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

template <class S>
struct Real;

// MAGIC added to a number leaves its nearest integer in the low bits. The parts of ln 2 and of π/2 sum to it. A phase
// beyond FAR has more quarter turns than those bits hold.
template <>
struct Real<float> {
  using Int = int32_t;
  static constexpr int MANTISSA = 23, TERMS = 7;
  static constexpr float MAGIC = 12582912.f, LEAST = -87.f, MOST = 88.f, EPSILON = 1.2e-7f, FAR = 1e6f;
  static constexpr float LN2[2] = {0.693145752f, 1.42860677e-6f};
  static constexpr float QUARTER[3] = {1.57079637f, -4.37113883e-8f, -1.71512451e-15f};
};

template <>
struct Real<double> {
  using Int = int64_t;
  static constexpr int MANTISSA = 52, TERMS = 13;
  static constexpr double MAGIC = 6755399441055744., LEAST = -708., MOST = 709., EPSILON = 2.2e-16,
                          FAR = 1e15;
  static constexpr double LN2[2] = {0.69314718055989033, 5.4979230187083712e-14};
  static constexpr double QUARTER[3] = {1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33};
};

// One rounding where the processor has such an instruction; emulated, it would be far too slow.
INLINE float fused(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
INLINE double fused(double a, double b, double c) {
#ifdef __FP_FAST_FMA
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

constexpr double inverse_factorial(int n) { return n < 2 ? 1. : inverse_factorial(n - 1) / n; }

// Σ x^k/(FIRST + STEP·k)! with alternating signs if STEP is 2, for TERMS terms.
template <class S, int FIRST, int STEP, int TERMS>
INLINE S series(S x) {
  if constexpr (TERMS == 1) {
    return S(inverse_factorial(FIRST));
  } else {
    const S rest = series<S, FIRST + STEP, STEP, TERMS - 1>(x);
    return fused(STEP == 2 ? -x : x, rest, S(inverse_factorial(FIRST)));
  }
}

// e^x = 1 + less_one, without cancellation near 0; x is held inside the range of normal numbers, and e^x is 0 below it.
template <class S>
struct Exp {
  S value, less_one;

  INLINE explicit Exp(S x) {
    using R = Real<S>;
    using U = std::make_unsigned_t<typename R::Int>;
    const S one_if_normal = x < R::LEAST ? S(0) : S(1);
    x = x < R::LEAST ? R::LEAST : x > R::MOST ? R::MOST : x;
    const S shifted = fused(x, S(1.4426950408889634), R::MAGIC), n = shifted - R::MAGIC;
    const S r = fused(-n, R::LN2[1], fused(-n, R::LN2[0], x));
    const S p = r * series<S, 1, 1, R::TERMS>(r);
    const U exponent = bits_as<U>(shifted) << R::MANTISSA;
    const S scale = one_if_normal * bits_as<S>(static_cast<U>(exponent + bits_as<U>(S(1))));
    less_one = fused(scale, p, scale - 1);
    value = fused(scale, p, scale);
  }
};

// Sine and cosine of x + rest, and cosine − 1 without cancellation near 0; |x| ≤ FAR.
template <class S>
struct SinCos {
  S sin, cos, cos_less_one;

  INLINE explicit SinCos(S x, S rest = 0) {
    using R = Real<S>;
    using U = std::make_unsigned_t<typename R::Int>;
    constexpr int terms = R::TERMS == 7 ? 5 : 8;
    const S shifted = fused(x, S(0.63661977236758134), R::MAGIC), n = shifted - R::MAGIC;
    S f = fused(-n, R::QUARTER[1], fused(-n, R::QUARTER[0], x));
    f = fused(-n, R::QUARTER[2], f) + rest;
    const S q = f * f;
    const S s = f * series<S, 1, 2, terms>(q), d = -q * series<S, 2, 2, terms>(q), c = 1 + d;
    const U quarter = bits_as<U>(shifted), odd = quarter & 1;
    constexpr int top = 8 * sizeof(S) - 2;
    const S a = odd ? c : s, b = odd ? s : c;
    sin = bits_as<S>(static_cast<U>(bits_as<U>(a) ^ ((quarter & 2) << top)));
    cos = bits_as<S>(static_cast<U>(bits_as<U>(b) ^ (((quarter + 1) & 2) << top)));
    cos_less_one = (quarter & 3) == 0 ? d : cos - 1;
  }
};

// Whether a phase, or not a number, is too much for the usual functions.
template <class S>
INLINE bool distant(S phase) {
  return !(std::abs(phase) <= Real<S>::FAR);
}

// f(whether phases are distant, as a type), where there are any: TURNS.
template <bool TURNS, class F>
INLINE void by_distance(bool distant, const F& f) {
  if constexpr (TURNS)
    if (distant) return f(std::true_type{});
  f(std::false_type{});
}

// Of any x, by the C library, which no loop is vectorized with. What is float here has no digit lost in x.
template <class S>
struct FarSinCos {
  S sin, cos, cos_less_one;

  explicit FarSinCos(double x, double rest) {
    const double s = std::sin(x), c = std::cos(x), half = std::sin(x / 2);
    const double small_s = std::sin(rest), half_rest = std::sin(rest / 2), small_c = -2 * half_rest * half_rest;
    sin = static_cast<S>(s + (s * small_c + c * small_s));
    cos = static_cast<S>(c + (c * small_c - s * small_s));
    cos_less_one = static_cast<S>(-2 * half * half + (c * small_c - s * small_s));
  }
};

template <class S>
INLINE S sigmoid(S x) {
  return 1 / (1 + Exp<S>(-x).value);
}

}  // namespace lrnnx::cpu
