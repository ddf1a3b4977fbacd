// A block of channels: planar numbers side by side, which the compiler vectorizes.
//
//   Lanes<float, 2>    value[0]   | re 0 | re 1 | .. | re 255 |      complex numbers of 256 channels, 2 KB
//                      value[1]   | im 0 | im 1 | .. | im 255 |
//
//   each(70, f)        channels 0 .. 31     channels 32 .. 63     channels 64 .. 69
//                      loops of kUnroll = 32, of a length known to the compiler      the rest
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX__
#include <immintrin.h>
#endif

#include "math.h"

namespace lrnnx::cpu {

constexpr int kBlock = 256;  // channels of a block at most: long rows please the prefetcher, state stays in L1
constexpr int kUnroll = 32;  // channels of a loop whose length the compiler knows; it would peel a shorter one

#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

// f(i, i % kUnroll) for each channel of a block.
template <class F>
INLINE void each(int width, const F& f) {
  int i = 0;
  for (; i + kUnroll <= width; i += kUnroll) {
    INDEPENDENT
    for (int k = 0; k < kUnroll; k++) f(i + k, k);
  }
  INDEPENDENT
  for (int k = 0; k < width - i; k++) f(i + k, k);
}

// A number of one channel: real (P = 1) or complex (P = 2).
template <class S, int P>
struct Number {
  S v[P];

  INLINE S re() const { return v[0]; }
  INLINE S im() const { return P == 2 ? v[P - 1] : S(0); }
};

template <int P, class S>
INLINE Number<S, P> number(S re, S im) {
  if constexpr (P == 2)
    return {{re, im}};
  else
    return {{re}};
}

template <class S, int P>
INLINE Number<S, P> conj(const Number<S, P>& x) {
  return number<P>(x.re(), -x.im());
}
template <class S, int P>
INLINE Number<S, P> operator+(const Number<S, P>& x, const Number<S, P>& y) {
  return number<P>(x.re() + y.re(), x.im() + y.im());
}
template <class S, int P>
INLINE Number<S, P> operator*(S x, const Number<S, P>& y) {
  return number<P>(x * y.re(), x * y.im());
}
template <class S, int P>
INLINE Number<S, P> operator*(const Number<S, P>& x, const Number<S, P>& y) {
  if constexpr (P == 1) return number<P>(x.re() * y.re(), S(0));
  return number<P>(x.re() * y.re() - x.im() * y.im(), x.re() * y.im() + x.im() * y.re());
}
// Re(conj(x)·y): what a real argument of x gains.
template <class S, int P>
INLINE S dot(const Number<S, P>& x, const Number<S, P>& y) {
  if constexpr (P == 1) return x.re() * y.re();
  return x.re() * y.re() + x.im() * y.im();
}
template <class S, int P>
INLINE Number<S, P> inverse(const Number<S, P>& x) {
  if constexpr (P == 1) return number<P>(1 / x.re(), S(0));
  return (1 / dot(x, x)) * conj(x);
}
template <class S, int P>
INLINE Number<S, P> select(bool condition, const Number<S, P>& x, const Number<S, P>& y) {
  return number<P>(condition ? x.re() : y.re(), condition ? x.im() : y.im());
}

// One channel of a row in memory whose planes are `plane` elements apart.
template <class S, int P, class E>
INLINE Number<S, P> read(const E* row, int64_t plane, int i) {
  if constexpr (P == 2) return number<P>(static_cast<S>(row[i]), static_cast<S>(row[plane + i]));
  return number<P>(static_cast<S>(row[i]), S(0));
}

// Whole cache lines past the caches, where a result is larger than they are: nobody reads the lines first.
inline void copy_row(void* to, const void* from, size_t bytes, bool past_caches) {
#ifdef __AVX__
  if (past_caches) {
    for (size_t k = 0; k < bytes; k += 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(static_cast<char*>(to) + k),
                          *reinterpret_cast<const __m256i*>(static_cast<const char*>(from) + k));
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

template <class S, int P>
struct Lanes {
  alignas(64) S value[P][kBlock] = {};

  INLINE Number<S, P> get(int i) const { return number<P>(value[0][i], value[P - 1][i]); }
  INLINE void put(int i, const Number<S, P>& x) {
    value[0][i] = x.re();
    if constexpr (P == 2) value[1][i] = x.im();
  }
  INLINE void add(int i, const Number<S, P>& x) { put(i, get(i) + x); }

  void clear() { std::memset(value, 0, sizeof value); }

  // Sum over the channels of the first plane, in a fixed order.
  S total(int width) const {
    S part[kUnroll] = {}, sum = 0;
    each(width, [&](int i, int k) { part[k] += value[0][i]; });
    for (S x : part) sum += x;
    return sum;
  }

  template <class E>
  void load(const E* from, int64_t plane, int width) {
    if (!from) return clear();
    for (int p = 0; p < P; p++) each(width, [&](int i, int) { value[p][i] = static_cast<S>(from[p * plane + i]); });
  }

  template <class E>
  void store(E* to, int64_t plane, int width, bool past_caches = false) const {
    for (int p = 0; p < P; p++) {
      if constexpr (std::is_same_v<E, S>) {
        copy_row(to + p * plane, value[p], width * sizeof(E), past_caches);
      } else {
        alignas(64) E row[kBlock];
        each(width, [&](int i, int) { row[i] = static_cast<E>(value[p][i]); });
        copy_row(to + p * plane, row, width * sizeof(E), past_caches);
      }
    }
  }
};

}  // namespace lrnnx::cpu
