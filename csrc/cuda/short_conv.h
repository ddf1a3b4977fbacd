// What the kernels of the short convolution know of a problem, and the sums over their strips.
#pragma once
#include "request.h"
#include "value.cuh"

namespace lrnnx::cuda {

constexpr int kLanes = 32;  // channel vectors of a block; it adds up the sums of its strips of time

struct Conv {
  const void *x, *weight, *bias, *state;  // x (B, T, D) with strides; weight (D, W); the rest may be null
  const void *grad, *grad_last;
  void *y, *last, *dx, *d_state, *part;   // part (blocks along T · B, 1 + W, D): sums for the bias and the taps
  const int64_t* lengths;
  const bool* reset;
  int64_t x_batch, x_time;
  int B, T, D, strip;                     // strip: steps of a thread
  bool silu;
};

// The strips of a block are added in order, one tap at a time. `sums`: for the bias, then for each tap by distance.
template <class S, int W, int V, int STRIPS>
DEVICE void sum_strips(const Conv& p, const S (&sums)[1 + W][V]) {
  __shared__ S shared[STRIPS][kLanes * V + 1];
  S* const part = static_cast<S*>(p.part) + (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * (1 + W) * p.D;
  UNROLL for (int j = 0; j <= W; j++) {
    __syncthreads();
    UNROLL for (int i = 0; i < V; i++) shared[threadIdx.y][threadIdx.x * V + i] = sums[j == 0 ? 0 : 1 + W - j][i];
    __syncthreads();
    const int c = threadIdx.y * kLanes + threadIdx.x, channel = blockIdx.x * kLanes * V + c;
    if (c < kLanes * V && channel < p.D) {
      S total = 0;
      UNROLL for (int strip = 0; strip < STRIPS; strip++) total += shared[strip][c];
      part[j * p.D + channel] = total;
    }
  }
}

// Sums of the rows of `part` in a fixed order: d_bias (D,) and d_weight (D, W).
template <class S>
__global__ void __launch_bounds__(256) finish_conv(const S* part, S* d_bias, S* d_weight, int rows, int W, int D) {
  __shared__ S shared[8][32];
  const int c = blockIdx.x * 32 + threadIdx.x, j = blockIdx.y;
  S total = 0;
  if (c < D)
    for (int row = threadIdx.y; row < rows; row += 8) total += part[(int64_t(row) * (1 + W) + j) * D + c];
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y || c >= D) return;
  total = 0;
  UNROLL for (int row = 0; row < 8; row++) total += shared[row][threadIdx.x];
  if (j == 0) d_bias[c] = total;
  else d_weight[int64_t(c) * W + j - 1] = total;
}

}  // namespace lrnnx::cuda
