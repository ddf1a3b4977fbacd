// Where the coefficients of a scan come from. The backward scan multiplies by the conjugate.
#pragma once
#include "value.cuh"

namespace lrnnx::cuda {

struct Params {
  const void *a, *x, *states;  // coefficients; drive, or gradient of the states; the states (backward only)
  const void *first, *h0;      // state that enters the walk, and initial state (backward only); may be null
  const int* mode;             // (B, T) of Mode; may be null
  void *y, *da, *last;         // states or db; da; state that leaves the walk
  void *part, *maps;           // partial sums (blocks / tiles, PL, N) of da over time; published maps
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
template <class S, int PL, int V, bool BWD>
struct Given {
  static constexpr bool READ = true, CONSTANT = false;
  DEVICE void init(const Params&, int) {}
  DEVICE Val<S, PL, V> at(const Val<S, PL, V>& raw) const { return BWD ? conj(raw) : raw; }
};

template <class S, int PL, int V, bool BWD>
struct Constant {
  static constexpr bool READ = false, CONSTANT = true;
  Val<S, PL, V> lam;
  DEVICE void init(const Params& p, int n) {
    UNROLL for (int e = 0; e < PL * V; e++)
      lam.v[e / V][e % V] = n + e % V < p.N ? static_cast<const S*>(p.a)[e / V * p.N + n + e % V] : S(0);
    if (BWD) lam = conj(lam);
  }
  DEVICE Val<S, PL, V> at(const Val<S, PL, V>&) const { return lam; }

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

}  // namespace lrnnx::cuda
