// Where the coefficients of a scan come from. The backward scan multiplies by the conjugate.
#pragma once
#include "value.cuh"

namespace lrnnx::cuda {

struct Params {
  const void *a, *x, *states;  // coefficients or rates; drive, or gradient of the states; the states (backward only)
  const void* dt;              // (B, T) time steps of TIMED coefficients
  const void *first, *h0;      // state that enters the walk, and initial state (backward only); may be null
  const int* mode;             // (B, T) of Mode; may be null
  void *y, *da, *last;         // states or db; da; state that leaves the walk
  void *part, *maps;           // partial sums (blocks / tiles, PL, N) of da over time; published maps
  void* part_dt;               // partial sums (tiles of all launches, B, T) of the gradient of dt
  int64_t a_batch, a_time;     // strides of a, 0 where it broadcasts
  int64_t map_vectors;         // 16-byte vectors of maps
  int B, T, N;
  int n0;                      // first channel of this launch
  int tiles, groups, J;        // tiles of channels; groups at a time; blocks that share a group
  int nper, rounds;            // chunks of a block in a group; groups of a block
  bool flip;                   // walk from the last step to the first
  bool aligned;                // rows begin at multiples of 16 bytes
  bool sum_a;                  // da is summed over time and batch
};

enum Mode : int { kPlain = 0, kHold = 1, kCut = 2 };  // a step after a row's end; one that drops its incoming state

// READ: read with the data. CONSTANT: the same at every step, so that powers replace products of maps.
// TIMED: made from the time steps.
template <class S, int PL, int V, bool BWD>
struct Given {
  static constexpr bool READ = true, CONSTANT = false, TIMED = false;
  DEVICE void init(const Params&, int) {}
  DEVICE Val<S, PL, V> at(const Val<S, PL, V>& raw, S) const { return BWD ? conj(raw) : raw; }
};

template <class S, int PL, int V, bool BWD>
struct Constant {
  static constexpr bool READ = false, CONSTANT = true, TIMED = false;
  Val<S, PL, V> lam;
  DEVICE void init(const Params& p, int n) {
    UNROLL for (int e = 0; e < PL * V; e++)
      lam.v[e / V][e % V] = n + e % V < p.N ? static_cast<const S*>(p.a)[e / V * p.N + n + e % V] : S(0);
    if (BWD) lam = conj(lam);
  }
  DEVICE Val<S, PL, V> at(const Val<S, PL, V>&, S) const { return lam; }

  // In double, once for a block: a chain of float squarings would lose digits.
  __device__ Val<S, PL, V> power(int exponent) const {
    Val<S, PL, V> r;
    for (int i = 0; i < V; i++) {
      double re = lam.v[0][i], im = PL == 2 ? lam.v[PL - 1][i] : S(0), out_re = 1, out_im = 0, t;
      for (int k = exponent; k; k >>= 1) {
        if (k & 1) {
          t = out_re * re - out_im * im;
          out_im = out_re * im + out_im * re;
          out_re = t;
        }
        t = re * re - im * im;
        im = 2 * re * im;
        re = t;
      }
      r.v[PL - 1][i] = out_im;
      r.v[0][i] = out_re;
    }
    return r;
  }
};

// exp(z dt) with a rate z for each channel: `a` never reaches memory.
template <class S, int PL, int V, bool BWD>
struct Decay {
  static constexpr bool READ = false, CONSTANT = false, TIMED = true;
  S re[V], turns[V], rest[V];  // Re z log2(e); +-Im z / pi = turns + rest, conjugated backward

  DEVICE void init(const Params& p, int n) {
    const S* const z = static_cast<const S*>(p.a);
    UNROLL for (int i = 0; i < V; i++) {
      const bool ok = n + i < p.N;
      const double w = ok && PL == 2 ? (BWD ? -1. : 1.) * z[p.N + n + i] * 0.31830988618379067 : 0.;
      re[i] = ok ? static_cast<S>(z[n + i] * 1.4426950408889634) : S(0);
      turns[i] = static_cast<S>(w);
      rest[i] = static_cast<S>(w - double(turns[i]));
    }
  }
  DEVICE Val<S, PL, V> at(const Val<S, PL, V>&, S dt) const {
    Val<S, PL, V> r;
    UNROLL for (int i = 0; i < V; i++) {
      if constexpr (sizeof(S) == 8) {
        const S size = exp2(re[i] * dt);
        S s = 0, c = 1;
        if constexpr (PL == 2) sincospi(fma(turns[i], dt, rest[i] * dt), &s, &c);
        r.v[PL - 1][i] = size * s;
        r.v[0][i] = size * c;
      } else {
        float size;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(size) : "f"(re[i] * dt));
        r.v[0][i] = size;
        if constexpr (PL == 2) rotate(size, dt, i, r.v[0][i], r.v[1][i]);
      }
    }
    return r;
  }
  // The phase in half turns is reduced exactly to a quadrant: a large phase costs no digits.
  DEVICE void rotate(float size, float dt, int i, float& out_re, float& out_im) const {
    const float phase = turns[i] * dt, error = fmaf(rest[i], dt, fmaf(turns[i], dt, -phase));
    const float shifted = fmaf(phase, 2.f, 12582912.f);  // its low bits: the nearest count of quarter turns
    const uint32_t quarter = __float_as_uint(shifted);
    const float f = fmaf(shifted - 12582912.f, -0.5f, phase) + error, q = f * f;
    const float s = f * fmaf(q, fmaf(q, fmaf(q, fmaf(q, 0.08214589f, -0.59926453f), 2.55016404f), -5.16771278f), 3.14159265f);
    const float c = fmaf(q, fmaf(q, fmaf(q, fmaf(q, 0.23533063f, -1.33526277f), 4.05871213f), -4.93480220f), 1.f);
    const float x = quarter & 1 ? s : c, y = quarter & 1 ? c : s;
    out_re = size * __uint_as_float(__float_as_uint(x) ^ (((quarter + 1) & 2) << 30));
    out_im = size * __uint_as_float(__float_as_uint(y) ^ ((quarter & 2) << 30));
  }
  // Sum over these channels of Re(q conj(z)); backward `turns` holds the conjugate.
  DEVICE S along(const Val<S, PL, V>& q) const {
    S sum = 0;
    UNROLL for (int i = 0; i < V; i++) {
      sum = fma(q.v[0][i], re[i] * S(0.69314718055994531), sum);
      if constexpr (PL == 2) sum = fma(q.v[1][i], turns[i] * S(-3.14159265358979324), sum);
    }
    return sum;
  }
};

}  // namespace lrnnx::cuda
