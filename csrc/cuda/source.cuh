// Where coefficients and drives of a scan come from, and what the backward scan makes of its adjoint. A source has
//
//   EXTRA   tensors read at every step beside x; backward beside the gradient of the states, and the states
//   OUT     gradients stored at every step beside y
//   STRIDED the extra tensor has strides of its own          CONSTANT  a is the same at every step: powers replace
//   TIMED   needs the time before each step                            products of maps
//   UNITS   steps may be of kUnit
//   KEEP_A, KEEP_X  a and the drive stay in registers between the two passes over a chunk
//   init(p, n)             reads what belongs to channels n to n + V
//   at<FAR>(in)            a, backward its conjugate; comes before drive and backward
//   far(in)                whether a needs at<true>, which is right for every step and slow
//   drive(in, a, x)        forward: what enters the recurrence
//   backward(in, a, g, next, h, da, sum, along)  returns the gradient of x; g is the gradient of the drive, next =
//                          conj(a) g, h the state before; `sum` is summed over time, `along` over channels
//
// Forward, in the registers of a thread, for its V channels:
//
//   source             Given     Constant    Impulse (dirac)    Ruled (any rule)   Gates (RG-LRU)
//   for all steps      -         lam         z                  z                  rate
//   read at a step     a, x      x           x, dt              x, dt              gate, input gate, u (as x), dt
//   a                  a         lam         exp(z dt)          rule(z, dt)        exp(-rate sigmoid(gate) dt)
//   drive              x         x           x                  gain(z, dt) x      sqrt(1 - a^2) sigmoid(input gate) u
#pragma once
#include "value.cuh"

namespace lrnnx::cuda {

struct Params {
  const void *a, *x, *states;  // coefficients or rates; drive, or gradient of the states; the states (backward only)
  const void* extra[3];        // further tensors shaped like x
  const void* dt;              // (B, T) time steps of TIMED coefficients; 1 if null
  const void *first, *h0;      // state that enters the walk, and initial state (backward only); may be null
  const int* mode;             // (B, T) of Mode; may be null
  void *y, *da[2], *last;      // states or gradient of x; further gradients; state that leaves the walk
  void *part, *maps;           // partial sums (blocks / tiles, PL, N) of `sum`; published maps
  void* part_dt;               // partial sums (tiles of all launches, B, T) of the gradient of dt; may be null
  int64_t a_batch, a_time;     // strides of a, 0 where it broadcasts
  int64_t map_vectors;         // 16-byte vectors of maps
  int B, T, N;
  int n0;                      // first channel of this launch
  int tiles, groups, J;        // tiles of channels; groups at a time; blocks that share a group
  int nper, rounds;            // chunks of a block in a group; groups of a block
  int rule;                    // of a discretization
  bool flip;                   // walk from the last step to the first
  bool aligned;                // rows begin at multiples of 16 bytes
  bool sum_a;                  // da is summed over time and batch
};

// What is special about a step. kHold: beyond the sequence's length, the state stays. kCut: a sequence starts, the state
// before is dropped. kUnit: the input enters without the RG-LRU's factor.
enum Mode : int { kPlain = 0, kHold = 1, kCut = 2, kUnit = 4 };

template <class S, class X, int EXTRA>
struct Inputs {  // what a source knows of a step
  X raw[EXTRA > 0 ? EXTRA : 1];
  X made[2];  // what `at` makes on its way for the other functions
  S dt;
  int mode;
};

// Coefficients read with the data.
template <class S, int PL, int V, bool BWD>
struct Given {
  static constexpr int EXTRA = 1, OUT = 1;
  static constexpr bool STRIDED = true, CONSTANT = false, TIMED = false, KEEP_A = false, KEEP_X = false, UNITS = false;
  using X = Val<S, PL, V>;
  using In = Inputs<S, X, EXTRA>;
  DEVICE void init(const Params&, int) {}
  DEVICE bool far(const In&) const { return false; }
  template <bool>
  DEVICE X at(const In& in) const { return BWD ? conj(in.raw[0]) : in.raw[0]; }
  DEVICE X drive(const In&, const X&, const X& x) const { return x; }
  DEVICE X backward(const In&, const X&, const X& g, const X&, const X& h, X* da, X&, S&) const {
    da[0] = mul(g, conj(h));
    return g;
  }
};

template <class S, int PL, int V, bool BWD>
struct Constant {
  static constexpr int EXTRA = 0, OUT = 0;
  static constexpr bool STRIDED = false, CONSTANT = true, TIMED = false, KEEP_A = false, KEEP_X = false, UNITS = false;
  using X = Val<S, PL, V>;
  using In = Inputs<S, X, EXTRA>;
  X lam;
  DEVICE void init(const Params& p, int n) {
    lam = channel_values<S, PL, V>(p.a, n, p.N);
    if (BWD) lam = conj(lam);
  }
  DEVICE bool far(const In&) const { return false; }
  template <bool>
  DEVICE X at(const In&) const { return lam; }
  DEVICE X drive(const In&, const X&, const X& x) const { return x; }
  DEVICE X backward(const In&, const X&, const X& g, const X&, const X& h, X*, X& sum, S&) const {
    sum = mad(g, conj(h), sum);
    return g;
  }

  // In double, once for a block: a chain of float squarings would lose digits.
  __device__ X power(int exponent) const {
    X r;
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
