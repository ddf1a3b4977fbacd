// The short convolution of whole rows: no lengths, no resets, so that every step is like the others.
//
// A thread walks over a strip of steps, U at a time, and has loaded the next U before it computes. W = 3, U = 4:
//
//   step             0 1 2 3   4 5 6 7   8 9 ..      a strip of 8 steps
//   seen             . . 0 1 2 3                      inputs in registers at step 0: SPAN = 2 before, then U
//                            2 3 4 5 6 7              at step 4
//   due, backward    . . 0 1 2 3                      what their gradients have so far; the first U are complete after
//                                                     step 3, the rest go on
//   after a strip    8 9                              their gradients reach inputs 6 and 7; their sums belong to the next
#pragma once
#include <type_traits>

#include "chained.cuh"
#include "short_conv.h"
#include "value.cuh"

namespace lrnnx::cuda {

template <class E, int W, int V>
struct Taps {
  using S = typename Storage<E>::Sum;
  S weight[W][V], bias[V];  // by distance: weight[0] meets the present sample
  DEVICE Taps(const Conv& p, int d) {
    constexpr int AT_ONCE = V > 1 && V * W * sizeof(S) % 16 == 0 ? 16 / sizeof(S) : 1;
    S all[V * W / AT_ONCE][AT_ONCE];
    UNROLL for (int i = 0; i < V * W / AT_ONCE; i++)
      load_packed(all[i], static_cast<const S*>(p.weight) + int64_t(d) * W + i * AT_ONCE);
    UNROLL for (int i = 0; i < V; i++) {
      bias[i] = p.bias ? static_cast<const S*>(p.bias)[d + i] : S(0);
      UNROLL for (int k = 0; k < W; k++) {
        const int at = i * W + W - 1 - k;
        weight[k][i] = all[at / AT_ONCE][at % AT_ONCE];
      }
    }
  }
  template <int N>
  DEVICE S at(const S (&seen)[N][V], int t, int i) const {
    S out = bias[i];
    UNROLL for (int k = 0; k < W; k++) out = fma(weight[k][i], seen[t - k][i], out);
    return out;
  }
};

// The input of step t, from the state if t < 0.
template <class E, int W, int V, class S>
DEVICE void input_at(const Conv& p, const E* x, int b, int d, int t, S (&to)[V]) {
  if (t >= 0)
    load_packed(to, x + t * p.x_time);
  else if (p.state)
    load_packed(to, static_cast<const S*>(p.state) + (int64_t(b) * (W - 1) + W - 1 + t) * p.D + d);
  else
    UNROLL for (int i = 0; i < V; i++) to[i] = 0;
}

template <class E, int W, int V, int U, int STRIPS>
__global__ void __launch_bounds__(kLanes * STRIPS, 2) strip_forward(Conv p) {
  using S = typename Storage<E>::Sum;
  constexpr int SPAN = W - 1;
  await_launch_before();
  const int d = (blockIdx.x * kLanes + threadIdx.x) * V, b = blockIdx.z;
  const int first = (blockIdx.y * STRIPS + threadIdx.y) * p.strip, end = min(first + p.strip, p.T);
  if (d >= p.D || first >= p.T) return;
  const E* const x = static_cast<const E*>(p.x) + b * p.x_batch + d;
  const E* ahead = x + first * p.x_time;
  E* y = static_cast<E*>(p.y) + (int64_t(b) * p.T + first) * p.D + d;
  const int x_time = static_cast<int>(p.x_time);
  Packed<E, V> raw[U];
  const auto fetch = [&](int t) {
    if (t + U <= end) {
      UNROLL for (int u = 0; u < U; u++) raw[u] = *reinterpret_cast<const Packed<E, V>*>(ahead + u * x_time);
    } else {
      UNROLL for (int u = 0; u < U; u++)
        if (t + u < end) raw[u] = *reinterpret_cast<const Packed<E, V>*>(ahead + u * x_time);
    }
    ahead += U * x_time;
  };
  fetch(first);
  S seen[SPAN + U][V];
  UNROLL for (int k = 0; k < SPAN; k++) input_at<E, W, V>(p, x, b, d, first - SPAN + k, seen[k]);
  const Taps<E, W, V> taps(p, d);
  for (int t = first; t < end; t += U, y += U * p.D) {
    UNROLL for (int u = 0; u < U; u++) unpack(seen[SPAN + u], raw[u]);
    fetch(t + U);
    S out[U][V];
    UNROLL for (int u = 0; u < U; u++) UNROLL for (int i = 0; i < V; i++) {
      out[u][i] = taps.at(seen, SPAN + u, i);
      if (p.silu) out[u][i] *= sigmoid(out[u][i]);
    }
    if (t + U <= end) {
      UNROLL for (int u = 0; u < U; u++) store_packed(y + u * p.D, out[u]);
    } else {
      UNROLL for (int u = 0; u < U; u++)
        if (t + u < end) store_packed(y + u * p.D, out[u]);
    }
    UNROLL for (int k = 0; k < SPAN; k++) UNROLL for (int i = 0; i < V; i++) seen[k][i] = seen[U + k][i];
  }
  if (end < p.T) return;
  UNROLL for (int k = 0; k < SPAN; k++) {
    input_at<E, W, V>(p, x, b, d, p.T - SPAN + k, seen[k]);
    store_packed(static_cast<S*>(p.last) + (int64_t(b) * SPAN + k) * p.D + d, seen[k]);
  }
}

template <class E, int W, int V, int U, int STRIPS>
__global__ void __launch_bounds__(kLanes * STRIPS, 16 / STRIPS) strip_backward(Conv p) {
  using S = typename Storage<E>::Sum;
  constexpr int SPAN = W - 1;
  static_assert(U >= SPAN);
  const int d = (blockIdx.x * kLanes + threadIdx.x) * V, b = blockIdx.z;
  const int first = (blockIdx.y * STRIPS + threadIdx.y) * p.strip, end = min(first + p.strip, p.T);
  S sums[1 + W][V] = {};  // for the bias, and for each tap by distance
  if (d < p.D && first < p.T) {
    const E* const x = static_cast<const E*>(p.x) + b * p.x_batch + d;
    const E* x_ahead = x + first * p.x_time;
    const E* grad_ahead = static_cast<const E*>(p.grad) + (int64_t(b) * p.T + first) * p.D + d;
    E* dx = static_cast<E*>(p.dx) + (int64_t(b) * p.T + first - SPAN) * p.D + d;  // of due[0]
    const int x_time = static_cast<int>(p.x_time);
    Packed<E, V> raw_x[U], raw_grad[U];
    const auto fetch = [&](int t) {
      UNROLL for (int u = 0; u < U; u++) {
        if (t + U > p.T) raw_x[u] = raw_grad[u] = Packed<E, V>{};  // no gradient: steps beyond T change nothing
        if (t + U <= p.T || t + u < p.T) {
          raw_x[u] = *reinterpret_cast<const Packed<E, V>*>(x_ahead + u * x_time);
          raw_grad[u] = *reinterpret_cast<const Packed<E, V>*>(grad_ahead + u * p.D);
        }
      }
      x_ahead += U * x_time;
      grad_ahead += U * p.D;
    };
    fetch(first);
    S seen[SPAN + U][V], due[SPAN + U][V] = {};  // [j]: of step t - SPAN + j
    UNROLL for (int k = 0; k < SPAN; k++) input_at<E, W, V>(p, x, b, d, first - SPAN + k, seen[k]);
    const Taps<E, W, V> taps(p, d);
    const auto advance = [&](int t, auto inside) {
      constexpr bool INSIDE = decltype(inside)::value;  // of the strip
      S grad[U][V];
      UNROLL for (int u = 0; u < U; u++) unpack(seen[SPAN + u], raw_x[u]);
      UNROLL for (int u = 0; u < U; u++) unpack(grad[u], raw_grad[u]);
      if constexpr (INSIDE) fetch(t + U);
      UNROLL for (int u = 0; u < (INSIDE ? U : SPAN); u++) UNROLL for (int i = 0; i < V; i++) {
        S g = grad[u][i];
        if (p.silu) {
          const S out = taps.at(seen, SPAN + u, i), open = sigmoid(out);
          g *= fma(open, fma(-out, open, out), open);
        }
        UNROLL for (int k = 0; k < W; k++) {
          due[SPAN + u - k][i] = fma(taps.weight[k][i], g, due[SPAN + u - k][i]);
          if constexpr (INSIDE) sums[1 + k][i] = fma(g, seen[SPAN + u - k][i], sums[1 + k][i]);
        }
        if constexpr (INSIDE) sums[0][i] += g;
      }
    };
    const auto to_state = [&](int s, const S (&z)[V]) {
      store_packed(static_cast<S*>(p.d_state) + (int64_t(b) * SPAN + SPAN + s) * p.D + d, z);
    };
    int t = first;
    for (; t + U <= end; t += U, dx += U * p.D) {
      advance(t, std::true_type{});
      UNROLL for (int j = 0; j < U; j++) {
        if (j >= SPAN || t > first) store_packed(dx + j * p.D, due[j]);
        else if (first == 0) to_state(j - SPAN, due[j]);
      }
      UNROLL for (int j = 0; j < SPAN + U; j++) UNROLL for (int i = 0; i < V; i++) {
        if (j < SPAN) seen[j][i] = seen[U + j][i];
        due[j][i] = j < SPAN ? due[U + j][i] : S(0);
      }
    }
    const int left = end < p.T ? 0 : end - t;  // only the last strip may not be a multiple of U
    if (left > 0) advance(t, std::true_type{});
    else if (end < p.T) advance(t, std::false_type{});
    UNROLL for (int j = 0; j < SPAN + U; j++) {
      if (j >= SPAN + left) break;
      const int s = t - SPAN + j, kept = s - (p.T - SPAN);
      if (kept >= 0) {  // an input that the state after the last step holds
        S of_last[V];
        load_packed(of_last, static_cast<const S*>(p.grad_last) + (int64_t(b) * SPAN + kept) * p.D + d);
        UNROLL for (int i = 0; i < V; i++) due[j][i] += of_last[i];
      }
      if (s >= first) store_packed(dx + j * p.D, due[j]);
      else if (s < 0) to_state(s, due[j]);
    }
  }
  sum_strips<S, W, V, STRIPS>(p, sums);
}

}  // namespace lrnnx::cuda
