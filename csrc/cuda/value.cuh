// Planar numbers in registers, V channels of PL planes (1 real, 2 complex), and their 16-byte storage.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define UNROLL _Pragma("unroll")
#define DEVICE __device__ __forceinline__

namespace lrnnx::cuda {

template <class S, int PL, int V>
struct Val {
  S v[PL][V];
};

// ---- functions of a number: fast ones in float, right to a few units in the last place ----
DEVICE float power_of_two(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEVICE double power_of_two(double x) { return exp2(x); }
DEVICE float reciprocal(float x) {  // one instruction, where `quotient` looks after denormal numbers
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEVICE double reciprocal(double x) { return 1 / x; }
DEVICE float exponential(float x) { return power_of_two(x * 1.44269504f); }
DEVICE double exponential(double x) { return exp(x); }
// exp(x) - 1, without cancellation where a decay is near 1.
DEVICE float decay_minus_1(float x) {
  const float rest = fmaf(x, fmaf(x, fmaf(x, 1.f / 5040, 1.f / 720), 1.f / 120), 1.f / 24);
  const float series = fmaf(x, fmaf(x, fmaf(x, rest, 1.f / 6), .5f), 1.f);
  return fabsf(x) < 0.35f ? x * series : exponential(x) - 1;
}
DEVICE double decay_minus_1(double x) { return expm1(x); }
// exp(x), near 1 rounded once: a bias of `power_of_two` would add up over a long memory.
template <class S>
DEVICE S decay(S x) {
  return 1 + decay_minus_1(x);
}
DEVICE float quotient(float x, float y) { return __fdividef(x, y); }
DEVICE double quotient(double x, double y) { return x / y; }
DEVICE float square_root(float x) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
DEVICE double square_root(double x) { return sqrt(x); }
template <class S>
DEVICE S sigmoid(S x) {
  return reciprocal(1 + exponential(-x));
}
// max(x, 0) + 2 atanh(e / (2 + e)) with e = exp(−|x|), which is log(1 + exp(x)): keeps the digits of a small step. The
// polynomial is atanh(t) / t to 4.5e-9 for t ≤ 1/3 (minimax).
DEVICE float soft_plus(float x) {
  const float e = exponential(-fabsf(x)), t = e * reciprocal(2 + e), s = t * t;
  const float q = fmaf(s, fmaf(s, fmaf(s, fmaf(s, .140059935f, .140009026f), .200107636f), .333332081f), 1.f);
  return fmaf(2 * t, q, fmaxf(x, 0.f));
}
DEVICE double soft_plus(double x) { return fmax(x, 0.) + log1p(exp(-fabs(x))); }

template <class S, int PL, int V>
DEVICE Val<S, PL, V> mad(const Val<S, PL, V>& a, const Val<S, PL, V>& b, const Val<S, PL, V>& c) {
  Val<S, PL, V> r;
  UNROLL for (int i = 0; i < V; i++) {
    r.v[0][i] = fma(a.v[0][i], b.v[0][i], c.v[0][i]);
    if constexpr (PL == 2) {
      r.v[0][i] = fma(-a.v[1][i], b.v[1][i], r.v[0][i]);
      r.v[1][i] = fma(a.v[0][i], b.v[1][i], fma(a.v[1][i], b.v[0][i], c.v[1][i]));
    }
  }
  return r;
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> mul(const Val<S, PL, V>& a, const Val<S, PL, V>& b) {
  return mad(a, b, Val<S, PL, V>{});
}

// a b + c, where a factor a of 0 drops b whatever it is, NaN and inf too.
template <class S, int PL, int V>
DEVICE Val<S, PL, V> mad_unless_0(const Val<S, PL, V>& a, Val<S, PL, V> b, const Val<S, PL, V>& c) {
  UNROLL for (int e = 0; e < PL * V; e++) {
    const bool none = a.v[0][e % V] == 0 && a.v[PL - 1][e % V] == 0;
    b.v[e / V][e % V] = none ? S(0) : b.v[e / V][e % V];
  }
  return mad(a, b, c);
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> add(const Val<S, PL, V>& a, const Val<S, PL, V>& b) {
  Val<S, PL, V> r;
  UNROLL for (int e = 0; e < PL * V; e++) r.v[e / V][e % V] = a.v[e / V][e % V] + b.v[e / V][e % V];
  return r;
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> conj(Val<S, PL, V> a) {
  if constexpr (PL == 2) UNROLL for (int i = 0; i < V; i++) a.v[1][i] = -a.v[1][i];
  return a;
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> real_number(S x) {
  Val<S, PL, V> r{};
  UNROLL for (int i = 0; i < V; i++) r.v[0][i] = x;
  return r;
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> scale(S a, const Val<S, PL, V>& b) {
  Val<S, PL, V> r;
  UNROLL for (int e = 0; e < PL * V; e++) r.v[e / V][e % V] = a * b.v[e / V][e % V];
  return r;
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> mad(S a, const Val<S, PL, V>& b, const Val<S, PL, V>& c) {
  Val<S, PL, V> r;
  UNROLL for (int e = 0; e < PL * V; e++) r.v[e / V][e % V] = fma(a, b.v[e / V][e % V], c.v[e / V][e % V]);
  return r;
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> invert(const Val<S, PL, V>& a) {
  Val<S, PL, V> r;
  UNROLL for (int i = 0; i < V; i++) {
    if constexpr (PL == 2) {
      const S size = quotient(S(1), fma(a.v[0][i], a.v[0][i], a.v[1][i] * a.v[1][i]));
      r.v[0][i] = a.v[0][i] * size;
      r.v[1][i] = -a.v[1][i] * size;
    } else {
      r.v[0][i] = quotient(S(1), a.v[0][i]);
    }
  }
  return r;
}

template <class S, int PL, int V>
DEVICE S real_sum(const Val<S, PL, V>& a) {
  S sum = 0;
  UNROLL for (int i = 0; i < V; i++) sum += a.v[0][i];
  return sum;
}

// V channels from n on of a small tensor (PL, N); zeros beyond the last.
template <class S, int PL, int V>
DEVICE Val<S, PL, V> channel_values(const void* from, int n, int N) {
  Val<S, PL, V> r{};
  UNROLL for (int e = 0; e < PL * V; e++)
    if (n + e % V < N) r.v[e / V][e % V] = static_cast<const S*>(from)[int64_t(e / V) * N + n + e % V];
  return r;
}

// Zero if so, else a.
template <class S, int PL, int V>
DEVICE Val<S, PL, V> unless(bool so, Val<S, PL, V> a) {
  UNROLL for (int e = 0; e < PL * V; e++) a.v[e / V][e % V] = so ? S(0) : a.v[e / V][e % V];
  return a;
}

template <class S, int PL, int V>
DEVICE Val<S, PL, V> shuffle_up(const Val<S, PL, V>& a, int distance) {
  Val<S, PL, V> r;
  UNROLL for (int e = 0; e < PL * V; e++) r.v[e / V][e % V] = __shfl_up_sync(~0u, a.v[e / V][e % V], distance);
  return r;
}

// ---- 16 bytes of storage as numbers: 2 double, 4 float, 8 half or bfloat16, widened to the precision of sums ----
template <class E>
struct Storage {  // float and double
  using Sum = E;
  static constexpr int V = 16 / sizeof(E);
  DEVICE static void unpack(const uint4& bits, E* to) {
    UNROLL for (int i = 0; i < V; i++) to[i] = reinterpret_cast<const E*>(&bits)[i];
  }
  DEVICE static uint4 pack(const E* from) {
    uint4 bits;
    UNROLL for (int i = 0; i < V; i++) reinterpret_cast<E*>(&bits)[i] = from[i];
    return bits;
  }
};

template <>
struct Storage<__nv_bfloat16> {
  using Sum = float;
  DEVICE static void unpack(const uint4& bits, float* to) {
    const uint32_t w[4] = {bits.x, bits.y, bits.z, bits.w};
    UNROLL for (int i = 0; i < 4; i++) {
      to[2 * i] = __uint_as_float(w[i] << 16);
      to[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
  }
  DEVICE static uint4 pack(const float* from) {
    uint32_t w[4];
    UNROLL for (int i = 0; i < 4; i++) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
      w[i] = reinterpret_cast<const uint32_t&>(pair);
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
  }
};

template <>
struct Storage<__half> {
  using Sum = float;
  DEVICE static void unpack(const uint4& bits, float* to) {
    const uint32_t w[4] = {bits.x, bits.y, bits.z, bits.w};
    UNROLL for (int i = 0; i < 4; i++) {
      const float2 pair = __half22float2(reinterpret_cast<const __half2&>(w[i]));
      to[2 * i] = pair.x;
      to[2 * i + 1] = pair.y;
    }
  }
  DEVICE static uint4 pack(const float* from) {
    uint32_t w[4];
    UNROLL for (int i = 0; i < 4; i++) {
      const __half2 pair = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
      w[i] = reinterpret_cast<const uint32_t&>(pair);
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
  }
};

// ---- V numbers side by side, as a whole ----
template <class E, int V>
struct alignas(sizeof(E) * V) Packed {
  E v[V];
};

template <class S, class E, int V>
DEVICE void unpack(S (&to)[V], const Packed<E, V>& packed) {
  UNROLL for (int i = 0; i < V; i++) to[i] = static_cast<S>(packed.v[i]);
}
template <class S, class E, int V>
DEVICE void load_packed(S (&to)[V], const E* from) {
  unpack(to, *reinterpret_cast<const Packed<E, V>*>(from));
}
template <class E, class S>
DEVICE void to_pair(E* to, S first, S second) {
  to[0] = static_cast<E>(first);
  to[1] = static_cast<E>(second);
}
DEVICE void to_pair(__nv_bfloat16* to, float first, float second) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(first, second);
}
DEVICE void to_pair(__half* to, float first, float second) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(first, second);
}
template <class E, class S, int V>
DEVICE void store_packed(E* to, const S (&from)[V]) {
  Packed<E, V> packed;
  UNROLL for (int i = 0; i < V; i++) {
    if (i % 2 == 0 && i + 1 < V) to_pair(packed.v + i, from[i], from[i + 1]);  // one instruction for two of half precision
    else if (i % 2 == 0) packed.v[i] = static_cast<E>(from[i]);
  }
  *reinterpret_cast<Packed<E, V>*>(to) = packed;
}

// 16 bytes from a row that is not aligned, or that ends before: element by element, zeros beyond `count`.
template <class E>
DEVICE uint4 gather(const E* from, int count) {
  uint4 bits = make_uint4(0, 0, 0, 0);
  UNROLL for (int i = 0; i < 16 / int(sizeof(E)); i++)
    if (i < count) reinterpret_cast<E*>(&bits)[i] = from[i];
  return bits;
}
template <class E>
DEVICE void scatter(E* to, const uint4& bits, int count) {
  UNROLL for (int i = 0; i < 16 / int(sizeof(E)); i++)
    if (i < count) to[i] = reinterpret_cast<const E*>(&bits)[i];
}

}  // namespace lrnnx::cuda
