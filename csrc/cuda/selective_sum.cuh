// Sums of the selective scan's gradients: over the channels of a warp by tensor cores, over blocks in a fixed order.
#pragma once
#include "selective_tile.cuh"

namespace lrnnx::cuda {

// D += A·B of 16 × 8 numbers, where the products that a warp is to sum over channels are B, with channels along the
// inner dimension, and A is a one-hot row that says which row of D gets the sum. So steps share an accumulator, and
// nothing is wasted but multiplications by zero. Columns are pairs of (part of a state, half of the warp's channels).
//
// The j-th number of each lane at step t, summed over the warp's 8 channels (float32 and float16):
//
//   lane       0 .. 3   4 .. 7   8 .. 11   12 .. 15   ..   28 .. 31
//   channel    0 .. 3   4 .. 7   0 .. 3    4 .. 7          4 .. 7
//   part       0        0        1         1               3
//   B          col 0    col 1    col 2     col 3           col 7      a lane gives one of 4 numbers of its column
//
//   A, row t   1 1 1 1, all other rows 0:   D row t, col n += sum of B's column n
//   D          lane 4 t + part holds cols 2·part and 2·part + 1 of row t; added, they are the sum over all 8 channels
//   rows 8 to 15 of D do the same for number j + 1. bfloat16 packs two numbers, so 4 steps share an accumulator.
DEVICE void multiply_tf32(float (&d)[4], float a, float b0, float b1) {  // b0 to row g of D, b1 to row g + 8
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%5,%4}, {%6,%7}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a)), "r"(0), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
DEVICE void multiply_bf16(float (&d)[4], uint32_t a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%5,%4}, {%6,%7}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a), "r"(0), "r"(b0), "r"(b1));
}

// Four numbers of each of 8 steps, summed over a warp's channels. For bfloat16 each number is rounded to bfloat16 before
// it is added, as the result will be. The others split a number into two parts of 11 bits (float16 would overflow).
template <class E>
struct ChannelSums {
  static constexpr bool ROUND = std::is_same<E, __nv_bfloat16>::value;
  static constexpr int ROW = 36, SIZE = 4 * ROW + (ROUND ? 8 : 0);  // in shared memory, without bank conflicts
  float sums[2][4] = {};

  DEVICE void add(const float (&x)[kHeld], int t, int lane) {
    const int g = lane >> 2;
    if constexpr (ROUND) {
      const uint32_t a = g == t % 4 ? 0x3f80u : g == t % 4 + 4 ? 0x3f800000u : 0u;
      multiply_bf16(sums[t / 4], a, narrow(x[0], x[1], E()), narrow(x[2], x[3], E()));
    } else {
      const float a = g == t ? 1.f : 0.f;
      UNROLL for (int j = 0; j < kHeld; j += 2) {
        const float b0 = __uint_as_float(__float_as_uint(x[j]) & 0xffffe000u);
        const float b1 = __uint_as_float(__float_as_uint(x[j + 1]) & 0xffffe000u);
        multiply_tf32(sums[j / 2], a, b0, b1);
        multiply_tf32(sums[j / 2], a, x[j] - b0, x[j + 1] - b1);
      }
    }
  }
  DEVICE void store(float* to, int lane) const {
    UNROLL for (int i = 0; i < 2; i++) {
      to[2 * i * ROW + lane] = sums[i][0] + sums[i][1];
      to[(2 * i + 1) * ROW + lane] = sums[i][2] + sums[i][3];
    }
  }
  // Where the j-th number of a part at step t was stored.
  DEVICE static int place(int t, int part, int j) {
    return ROUND ? (t / 4 * 2 + j / 2) * ROW + (t % 4 + j % 2 * 4) * 4 + part : j * ROW + t * 4 + part;
  }
};

// Sums of the blocks of a group, for B (blockIdx.y 0) and C: (blocks, B, rows, slices · 16) to (B, T, G, P, N), or, of
// weights that are the same everywhere, over batch and rows to (G, P, N).
struct WeightSums {
  const float* part[2];
  void* to[2];
  bool everywhere[2];
  int64_t rows[2];  // of all batch elements, and to be added where `everywhere`
  int tiles, groups, slices, states;
};

template <class E, int PL>
__global__ void __launch_bounds__(256) finish_weights(const WeightSums p) {
  constexpr int V = kHeld / PL;
  const int which = blockIdx.y, quads = p.slices * kParts, n = p.states;
  const int64_t rows = p.rows[which], inner = p.everywhere[which] ? rows : 1, count = rows / inner;
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= count * p.groups * quads) return;
  const int quad = i % quads, group = i / quads % p.groups;
  const int64_t row = i / quads / p.groups;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int tile = 0; tile < p.tiles; tile++) {
    const float* from = p.part[which] + ((group * p.tiles + tile) * rows + row * inner) * quads * kHeld + quad * kHeld;
#pragma unroll 4
    for (int64_t k = 0; k < inner; k++, from += quads * kHeld) {
      const float4 x = *reinterpret_cast<const float4*>(from);
      sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
  }
  const float x[kHeld] = {sum.x, sum.y, sum.z, sum.w};
  E* const to = static_cast<E*>(p.to[which]) + (row * p.groups + group) * PL * n;
  UNROLL for (int j = 0; j < kHeld; j++) {
    const int state = quad * V + j % V;
    const bool negative = which == 1 && j >= V;  // C was taken conjugated
    if (state < n) to[j / V * n + state] = static_cast<E>(negative ? -x[j] : x[j]);
  }
}

// Sums over segments and batch, of A, D and the bias, and over blocks, of the elapsed time.
template <int PL>
__global__ void __launch_bounds__(256) finish_channels(const Selective p) {
  constexpr int V = kHeld / PL;
  const int rows = p.slices * kSlice + 2, wide = p.padded / p.groups;
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= int64_t(rows) * p.channels) return;
  const int number = i / p.channels, d = i % p.channels;
  const float* const from = p.part_channel + int64_t(number) * p.padded + d / p.share * wide + d % p.share;
  float sum = 0;
#pragma unroll 4
  for (int k = 0; k < p.batch * p.segments; k++) sum += from[int64_t(k) * rows * p.padded];
  if (number >= rows - 2) {
    float* const to = number == rows - 2 ? p.dD : p.dbias;
    if (to) to[d] = sum;
    return;
  }
  const int j = number % kHeld, n = number / kHeld * V + j % V;
  if (n < p.states) p.dA[(int64_t(d) * PL + j / V) * p.states + n] = sum;
}

template <class S>
__global__ void __launch_bounds__(256) finish_elapsed(const S* part, S* to, int64_t count, int blocks) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  S sum = 0;
  for (int k = 0; k < blocks; k++) sum += part[k * count + i];
  to[i] = sum;
}

}  // namespace lrnnx::cuda
