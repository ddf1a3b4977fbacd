// What the kernels of the selective scan share: where a block's channels lie, and storage types in twos and fours.
//
// 2 groups of 40 channels, blocks of C = 32 channels. A block has channels of one group only, and scratch memory pads
// each group to a multiple of 64 places:
//
//   channel          0 .. 31    32 .. 39                  40 .. 71   72 .. 79
//   block            0          1                         2          3
//   Home.from        0          32                        40         72
//   Home.width       32         8 (24 lanes repeat 39)    32         8 (24 lanes repeat 79)
//   scratch place    0 .. 31    32 .. 39, padding to 63   64 .. 95   96 .. 103, padding to 127
//
// A slice is 16 numbers of a channel's state. Four lanes hold four each:
//
//   part             0                     1                     2                        3
//   real             states 0 1 2 3        4 5 6 7               8 9 10 11                12 13 14 15
//   complex          re 0 1, im 0 1        re 2 3, im 2 3        re 4 5, im 4 5           re 6 7, im 6 7
#pragma once
#include "memory.cuh"
#include "selective_rule.cuh"

namespace lrnnx::cuda {

// ---- a pair of channels ----
DEVICE float2 twice(float x) { return make_float2(x, x); }
DEVICE float2 mad(float2 a, float2 b, float2 c) { return make_float2(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)); }
DEVICE float2 mul(float2 a, float2 b) { return make_float2(a.x * b.x, a.y * b.y); }
DEVICE float2 add(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
DEVICE float2 sigmoid(float2 x) { return make_float2(sigmoid(x.x), sigmoid(x.y)); }
DEVICE float2 soft_plus(float2 x) { return make_float2(soft_plus(x.x), soft_plus(x.y)); }
DEVICE float2 gated(float2 x, float2 z) { return mul(mul(x, z), sigmoid(z)); }

DEVICE float2 widen(uint32_t w, __nv_bfloat16) {
  return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
}
DEVICE float2 widen(uint32_t w, __half) { return __half22float2(reinterpret_cast<const __half2&>(w)); }
DEVICE uint32_t narrow(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}
DEVICE uint32_t narrow(float a, float b, __half) {
  const __half2 pair = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Numbers as they are stored.
template <class E>
struct Pair {
  uint32_t bits;
  DEVICE float2 get() const { return widen(bits, E()); }
};
template <>
struct Pair<float> {
  float2 v;
  DEVICE float2 get() const { return v; }
};
template <class E>
DEVICE float2 load_pair(const E* p) {
  return reinterpret_cast<const Pair<E>*>(p)->get();
}
DEVICE void store_pair(float* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
template <class E>
DEVICE void store_pair(E* p, float2 v) {
  *reinterpret_cast<uint32_t*>(p) = narrow(v.x, v.y, E());
}

template <class E>
struct alignas(4 * sizeof(E)) Quad {
  Pair<E> a, b;
  DEVICE void set(int i, E x) { reinterpret_cast<E*>(i < 2 ? &a : &b)[i % 2] = x; }
  DEVICE float4 get() const {
    const float2 x = a.get(), y = b.get();
    return make_float4(x.x, x.y, y.x, y.y);
  }
};

// Four numbers of B or C of a group at a step, from `part` of a slice: 4 states, or the real and then the imaginary
// parts of 2; zero beyond the last state. Whole quads arrive by the next wait for copies.
template <class E, int PL>
DEVICE void stage_quad(Quad<E>& to, const E* row, const Selective& p, int slice, int part) {
  constexpr int V = kHeld / PL;
  const int n = (slice * kParts + part) * V;
  if (PL == 1 && p.quads) {
    const E* const from = row + min(n, p.states - kHeld);
    if constexpr (sizeof(E) == 4)
      copy16(shared_address(&to), from, n < p.states);
    else
      copy_one(reinterpret_cast<uint2*>(&to), reinterpret_cast<const uint2*>(from), n < p.states);
  } else {
    UNROLL for (int j = 0; j < kHeld; j++)
      to.set(j, n + j % V < p.states ? row[j / V * p.states + n + j % V] : E(0.f));
  }
}

// As float, and C conjugated.
template <class E, int PL>
DEVICE void put_quad(float* to, const Quad<E>& quad, bool conjugate) {
  float4 v = quad.get();
  if (PL == 2 && conjugate) v = make_float4(v.x, v.y, -v.z, -v.w);
  *reinterpret_cast<float4*>(to) = v;
}

// The channels of a block: at most C, all of one group. Lanes beyond the last channel read the last channel.
template <int C>
struct Home {
  int group, from;
  int width;   // how many; below 1 where a tile only fills the padding
  int padded;  // place of the first in scratch memory

  DEVICE explicit Home(const Selective& p) {
    const int tiles = gridDim.x / p.groups, tile = blockIdx.x % tiles;
    group = blockIdx.x / tiles;
    from = group * p.share + tile * C;
    width = min(C, p.share - tile * C);
    padded = group * (p.padded / p.groups) + tile * C;
  }
  DEVICE int channel(int c) const { return from + min(c, width - 1); }
};

// Stores two channels, of which the first (`one`) or both may exist; in one access if channels come in pairs.
template <class E>
DEVICE void put_pair(bool pairs, bool one, bool both, E* to, float2 v) {
  if (pairs) {
    if (one) store_pair(to, v);
  } else {
    if (one) to[0] = static_cast<E>(v.x);
    if (both) to[1] = static_cast<E>(v.y);
  }
}

// A pair of adjacent channels that a thread does elementwise work for; c is even.
struct Couple {
  int first, next;     // channels; `next` is how far the second is away: 1, or 0 beyond the last
  bool inside, both;

  // A thread beyond the last channel takes the last pair, since a pair is read in one access.
  Couple() = default;
  template <int C>
  DEVICE Couple(const Home<C>& home, int c)
      : first(home.from + min(c, (home.width - 1) & ~1)), next(home.channel(c + 1) - first), inside(c < home.width),
        both(c + 1 < home.width) {}
  DEVICE float2 of(const float* x) const { return x ? make_float2(x[first], x[first + next]) : make_float2(0, 0); }
  template <class E>
  DEVICE void store(bool pairs, void* to, int64_t row, int channels, float2 v) const {
    put(pairs, static_cast<E*>(to) + (row * channels + first), v);
  }
  template <class E>
  DEVICE void put(bool pairs, E* to, float2 v) const {
    put_pair(pairs, inside, both, to, v);
  }
};

template <class E>
DEVICE const E* row_of(const Along& x, int t) {  // of the sequence that `of_sequence` chose
  return reinterpret_cast<const E*>(x.data + int64_t(t) * x.time);
}
// The same problem; pointers to what is read along time now point to the b-th sequence.
DEVICE Selective of_sequence(Selective p, int b) {
  for (Along* x : {&p.u, &p.delta, &p.z, &p.B, &p.C, &p.grad})
    if (x->data) x->data += b * x->batch;
  return p;
}

// Where the j-th number of a lane lies in a state (B, D, P, N) or in A (D, P, N), for a `row` of B·D or D. Numbers
// beyond the last state are 0.
template <int PL>
struct StateAt {
  static constexpr int V = kHeld / PL;
  int n, states;
  DEVICE StateAt(const Selective& p, int slice, int part) : n((slice * kParts + part) * V), states(p.states) {}
  DEVICE int64_t place(int64_t row, int j) const { return (row * PL + j / V) * states + n + j % V; }
  DEVICE bool exists(int j) const { return n + j % V < states; }
  DEVICE Val<float, PL, V> load(const float* from, int64_t row) const {
    Val<float, PL, V> r{};
    if (from)
      UNROLL for (int j = 0; j < kHeld; j++)
        if (exists(j)) r.v[j / V][j % V] = from[place(row, j)];
    return r;
  }
  DEVICE void store(float* to, int64_t row, const Val<float, PL, V>& x) const {
    UNROLL for (int j = 0; j < kHeld; j++)
      if (exists(j)) to[place(row, j)] = x.v[j / V][j % V];
  }
};

// A lane's four numbers in scratch memory (…, 16, padded): four rows from `from` on. Neighbours in a row are channels.
template <int PL>
DEVICE Val<float, PL, kHeld / PL> load_column(const float* from, int padded) {
  Val<float, PL, kHeld / PL> r;
  UNROLL for (int j = 0; j < kHeld; j++) r.v[j / (kHeld / PL)][j % (kHeld / PL)] = from[int64_t(j) * padded];
  return r;
}
template <int PL>
DEVICE void store_column(float* to, int padded, const Val<float, PL, kHeld / PL>& x) {
  UNROLL for (int j = 0; j < kHeld; j++) to[int64_t(j) * padded] = x.v[j / (kHeld / PL)][j % (kHeld / PL)];
}
// A lane's four numbers in shared memory, side by side.
template <int PL>
DEVICE Val<float, PL, kHeld / PL> load_four(const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  Val<float, PL, kHeld / PL> r;
  const float x[4] = {v.x, v.y, v.z, v.w};
  UNROLL for (int j = 0; j < kHeld; j++) r.v[j / (kHeld / PL)][j % (kHeld / PL)] = x[j];
  return r;
}
template <int PL>
DEVICE float4 as_four(const Val<float, PL, kHeld / PL>& x) {
  constexpr int V = kHeld / PL;
  return make_float4(x.v[0][0], x.v[1 / V][1 % V], x.v[2 / V][2 % V], x.v[3 / V][3 % V]);
}

// Where the decay (`which` 0) and the end state (1) of a segment lie.
DEVICE int64_t segment_row(const Selective& p, int b, int segment, int slice, int which) {
  return (((int64_t(b) * p.segments + segment) * p.slices + slice) * 2 + which) * kSlice * p.padded;
}

}  // namespace lrnnx::cuda
