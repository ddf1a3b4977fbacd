// lrnnx::short_conv on CUDA and its gradients. A thread has a vector of channels and a strip of steps: it reads each
// input once, and keeps the window, or the gradients that the window still owes, in registers.
//
// At a toy size: W = 3 taps, strips of 4 steps, V = 4 channels in a vector.
//
//   step            0 1 2 3   4 5 6 7   8 9 ..       8 strips in a block; blockIdx.y: further strips
//   threadIdx.y     0         1         2
//   threadIdx.x     c has the channels 4 c .. 4 c + 3; 32 vectors in a block; blockIdx.x: further ones; blockIdx.z: batch
//
//   forward, strip 1 at step 5       window  x5 x4 x3       y5 = bias + w0 x5 + w1 x4 + w2 x3
//   (it starts with x3 and x2)
//   backward, strip 1 at step 5      owed    for x5, x4, x3: += w0 g5, w1 g5, w2 g5; strip 0 stores dx3
//   (it reads the gradients g4 to g9)        for x4 is complete after step 6: stored as dx4
//   sums for bias and taps           registers of a thread -> shared memory, 8 strips added -> global part -> finish_conv
//
// That is for rows with lengths or resets. All others go through short_conv_strip.cuh.
#include "chained.cuh"
#include "short_conv_strip.cuh"

namespace lrnnx::cuda {
namespace {

constexpr int kStrips = 8;  // of a block

struct Outputs {
  Tensor weight, bias;  // gradients (D, W) and (D,), in the precision of sums
};

// One thread's place and taps, and the window of inputs: window[k] is that of k steps ago.
template <class E, int W, int V>
struct Walk {
  using S = typename Storage<E>::Sum;
  static constexpr int SPAN = W - 1;
  const Conv& p;
  int b, d, seen;
  int64_t length;
  S weight[W][V], bias[V], window[W][V];  // weight by distance: weight[0] meets the present sample

  DEVICE Walk(const Conv& p, int b, int d, int first) : p(p), b(b), d(d), seen(SPAN), length(p.lengths ? min(max(p.lengths[b], int64_t(0)), int64_t(p.T)) : p.T) {
    UNROLL for (int i = 0; i < V; i++) {
      bias[i] = p.bias ? static_cast<const S*>(p.bias)[d + i] : S(0);
      UNROLL for (int k = 0; k < W; k++) weight[k][i] = static_cast<const S*>(p.weight)[(d + i) * W + SPAN - k];
    }
    UNROLL for (int k = 0; k < SPAN; k++) input(first - 1 - k, window[k]);
    seen = 0;  // of the step before the strip: how many inputs before it are of the same sequence
    while (seen < SPAN && first - 1 - seen >= 0 && !(p.reset && p.reset[int64_t(b) * p.T + first - 1 - seen])) seen++;
    if (first - 1 - seen < 0) seen = SPAN;
  }

  DEVICE const E* inputs(int t) const { return static_cast<const E*>(p.x) + b * p.x_batch + t * p.x_time + d; }
  DEVICE bool sees(int k) const { return k <= seen; }

  DEVICE void input(int t, S (&to)[V]) const {
    if (t >= 0 && t < length)
      load_packed(to, inputs(t));
    else if (t < 0 && p.state)
      load_packed(to, static_cast<const S*>(p.state) + (int64_t(b) * SPAN + SPAN + t) * p.D + d);
    else
      UNROLL for (int i = 0; i < V; i++) to[i] = 0;
  }

  DEVICE void advance(int t, const S (&now)[V]) {
    UNROLL for (int k = SPAN; k > 0; k--) UNROLL for (int i = 0; i < V; i++) window[k][i] = window[k - 1][i];
    UNROLL for (int i = 0; i < V; i++) window[0][i] = now[i];
    seen = p.reset && p.reset[int64_t(b) * p.T + t] ? 0 : min(seen + 1, SPAN);
  }

  DEVICE void sum(S (&out)[V]) const {
    UNROLL for (int i = 0; i < V; i++) out[i] = bias[i];
    UNROLL for (int k = 0; k < W; k++)
      if (sees(k)) UNROLL for (int i = 0; i < V; i++) out[i] = fma(weight[k][i], window[k][i], out[i]);
  }
};

template <class E, int W, int V>
__global__ void __launch_bounds__(kLanes * kStrips) short_conv_forward(Conv p) {
  using S = typename Storage<E>::Sum;
  constexpr int SPAN = W - 1, AHEAD = 4;
  await_launch_before();
  const int d = (blockIdx.x * kLanes + threadIdx.x) * V, b = blockIdx.z;
  const int first = (blockIdx.y * kStrips + threadIdx.y) * p.strip, end = min(first + p.strip, p.T);
  if (d >= p.D || first >= p.T) return;
  Walk<E, W, V> walk(p, b, d, first);
  E* const y = static_cast<E*>(p.y) + (int64_t(b) * p.T) * p.D + d;
  S* const last = static_cast<S*>(p.last) + int64_t(b) * SPAN * p.D + d;
  if (first == 0 && walk.length == 0)
    UNROLL for (int k = 0; k < SPAN; k++) store_packed(last + (SPAN - 1 - k) * p.D, walk.window[k]);
  for (int start = first; start < end; start += AHEAD) {
    S next[AHEAD][V];
    if (start + AHEAD <= walk.length) {
      UNROLL for (int k = 0; k < AHEAD; k++) load_packed(next[k], walk.inputs(start + k));
    } else {
      UNROLL for (int k = 0; k < AHEAD; k++) walk.input(start + k, next[k]);
    }
    UNROLL for (int k = 0; k < AHEAD; k++) {
      const int t = start + k;
      if (t >= end) break;
      S out[V] = {};
      if (t < walk.length) {
        walk.advance(t, next[k]);
        walk.sum(out);
        if (p.silu) UNROLL for (int i = 0; i < V; i++) out[i] *= sigmoid(out[i]);
        if (t == walk.length - 1)
          UNROLL for (int j = 0; j < SPAN; j++) {
            S kept[V];
            UNROLL for (int i = 0; i < V; i++) kept[i] = walk.sees(j) ? walk.window[j][i] : S(0);
            store_packed(last + (SPAN - 1 - j) * p.D, kept);
          }
      }
      store_packed(y + int64_t(t) * p.D, out);
    }
  }
}

// owed[k] gathers the gradient of the input k steps ago; it is whole when it leaves the window.
template <class E, int W, int V>
__global__ void __launch_bounds__(kLanes * kStrips) short_conv_backward(Conv p) {
  using S = typename Storage<E>::Sum;
  constexpr int SPAN = W - 1;
  const int d = (blockIdx.x * kLanes + threadIdx.x) * V, b = blockIdx.z;
  const int first = (blockIdx.y * kStrips + threadIdx.y) * p.strip, end = min(first + p.strip, p.T);
  S sums[1 + W][V] = {};  // for the bias, and for each tap by distance
  if (d < p.D && first < p.T) {
    Walk<E, W, V> walk(p, b, d, first);
    const E* const grad = static_cast<const E*>(p.grad) + (int64_t(b) * p.T) * p.D + d;
    const S* const grad_last = static_cast<const S*>(p.grad_last) + int64_t(b) * SPAN * p.D + d;
    E* const dx = static_cast<E*>(p.dx) + (int64_t(b) * p.T) * p.D + d;
    S* const d_state = static_cast<S*>(p.d_state) + int64_t(b) * SPAN * p.D + d;
    S owed[W][V] = {}, next_grad[V] = {}, next_input[V] = {};
    const auto fetch = [&](int t) {
      if (t >= walk.length || t >= end + SPAN) return;
      load_packed(next_grad, grad + int64_t(t) * p.D);
      load_packed(next_input, walk.inputs(t));
    };
    fetch(first);
    for (int t = first; t < end + SPAN; t++) {
      S g[V], now[V];
      UNROLL for (int i = 0; i < V; i++) {
        g[i] = next_grad[i];
        now[i] = next_input[i];
      }
      fetch(t + 1);
      if (t == walk.length)  // the state after the last step holds the last inputs: add its gradient to theirs
        UNROLL for (int k = 0; k < SPAN; k++)
          if (walk.sees(k) || t == 0) {
            S of_last[V];
            load_packed(of_last, grad_last + (SPAN - 1 - k) * p.D);
            UNROLL for (int i = 0; i < V; i++) owed[k][i] += of_last[i];
          }
      UNROLL for (int k = SPAN; k > 0; k--) UNROLL for (int i = 0; i < V; i++) owed[k][i] = owed[k - 1][i];
      UNROLL for (int i = 0; i < V; i++) owed[0][i] = 0;
      if (t < walk.length) {
        S out[V];
        walk.advance(t, now);
        if (p.silu) {
          walk.sum(out);
          UNROLL for (int i = 0; i < V; i++) {
            const S s = sigmoid(out[i]);
            g[i] *= s * (1 + out[i] * (1 - s));
          }
        }
        UNROLL for (int k = 0; k < W; k++)
          if (walk.sees(k)) UNROLL for (int i = 0; i < V; i++) {
            owed[k][i] = fma(walk.weight[k][i], g[i], owed[k][i]);
            if (t < end) sums[1 + k][i] = fma(g[i], walk.window[k][i], sums[1 + k][i]);
          }
        if (t < end) UNROLL for (int i = 0; i < V; i++) sums[0][i] += g[i];
      }
      const int s = t - SPAN;
      if (s >= first)
        store_packed(dx + int64_t(s) * p.D, owed[SPAN]);
      else if (s < 0 && SPAN > 0)
        store_packed(d_state + (SPAN + s) * p.D, owed[SPAN]);
    }
  }
  sum_strips<S, W, V, kStrips>(p, sums);
}

// Strips are as long as leaves enough for all processors. Inputs where strips meet are read twice, but from a cache.
int strip_of(const Conv& p, int V, int most) {
  const int64_t rows = int64_t(p.B) * ((p.D + kLanes * V - 1) / (kLanes * V));
  int strip = most;
  while (strip > 4 && rows * ((p.T + strip - 1) / strip) < 132 * 15) strip /= 2;
  return strip;
}

dim3 grid_of(const Conv& p, int V, int strips) {
  const int steps = p.strip * strips;
  return dim3((p.D + kLanes * V - 1) / (kLanes * V), (p.T + steps - 1) / steps, p.B);
}

// A kernel with V channels in a thread and so many strips in a block; backward with the sums after it.
template <class S>
struct Start {
  Conv p;
  int W, V, strips;
  Outputs* sums;
  cudaStream_t stream;

  template <class Kernel>
  void forward(Kernel kernel) const {
    start_chained(kernel, grid_of(p, V, strips), dim3(kLanes, strips), stream, p);
  }
  template <class Kernel>
  void backward(Kernel kernel) {
    const dim3 grid = grid_of(p, V, strips);
    const int rows = static_cast<int>(p.B * grid.y);
    Tensor part = empty(sums->bias, {int64_t(rows) * (1 + W), p.D}, sums->bias.scalar_type());
    p.part = part.data_ptr();
    kernel<<<grid, dim3(kLanes, strips), 0, stream>>>(p);
    finish_conv<S><<<dim3((p.D + 31) / 32, 1 + W), dim3(32, 8), 0, stream>>>(
        static_cast<const S*>(p.part), static_cast<S*>(sums->bias.data_ptr()), static_cast<S*>(sums->weight.data_ptr()),
        rows, W, p.D);
    check(cudaGetLastError());
  }
};

template <class E, int W, int V, bool BWD>
void start(Conv p, Outputs* sums, cudaStream_t stream) {
  using S = typename Storage<E>::Sum;
  constexpr int U = 4, N = !BWD || V == 1 ? V : sizeof(S) == 8 ? 1 : 2;  // channels of a thread; backward registers are few
  if (p.lengths || p.reset) {
    p.strip = strip_of(p, V, BWD ? 32 : 16);
    Start<S> run{p, W, V, kStrips, sums, stream};
    if constexpr (BWD) run.backward(short_conv_backward<E, W, V>);
    else run.forward(short_conv_forward<E, W, V>);
  } else {
    p.strip = strip_of(p, N, 256);
    Start<S> run{p, W, N, kStrips, sums, stream};
    if constexpr (BWD) run.backward(strip_backward<E, W, N, U, kStrips>);
    else run.forward(strip_forward<E, W, N, U, kStrips>);
  }
}

template <class E, bool BWD>
void by_width(const Conv& p, int64_t width, bool aligned, Outputs* sums, cudaStream_t stream) {
  constexpr int V = 16 / sizeof(typename Storage<E>::Sum);
  const auto with = [&](auto w) {
    constexpr int W = decltype(w)::value;
    aligned ? start<E, W, V, BWD>(p, sums, stream) : start<E, W, 1, BWD>(p, sums, stream);
  };
  if (width == 1) return with(std::integral_constant<int, 1>{});
  if (width == 2) return with(std::integral_constant<int, 2>{});
  if (width == 3) return with(std::integral_constant<int, 3>{});
  if (width == 4) return with(std::integral_constant<int, 4>{});
  STD_TORCH_CHECK(false, "short_conv takes 1 to 4 taps");
}

template <bool BWD>
void run_conv(ScalarType dtype, const Conv& p, int64_t width, bool aligned, Outputs* sums, cudaStream_t stream) {
  if (int64_t(p.B) * p.D == 0) return;
  by_dtype(dtype, [&](auto e) { by_width<decltype(e), BWD>(p, width, aligned, sums, stream); });
}

// What both passes read: x without a copy if its channels are contiguous; the rest in the precision of sums.
struct Tensors {
  Tensor x, weight;
  Optional bias, state, lengths, reset;
  int V;

  Tensors(const Tensor& x_, const Tensor& weight_, const Optional& bias_, const Optional& state_,
        const Optional& lengths_, const Optional& reset_, ScalarType wide)
      : x(whole("x", x_, {3}).size(2) == 1 || x_.stride(2) == 1 ? x_ : torch::stable::contiguous(x_)),
        weight(dense(weight_, wide)),
        bias(dense(bias_, wide)),
        state(dense(state_, wide)),
        lengths(dense(lengths_, ScalarType::Long)),
        reset(dense(reset_, ScalarType::Bool)),
        V(wide == ScalarType::Double ? 2 : 4) {
    expect_taps(x_, weight_, bias_, state_, lengths_, reset_);
  }

  Conv conv(bool silu) const {
    STD_TORCH_CHECK(x.size(0) < 65536 && x.size(1) < (1 << 30) && x.size(2) < (1 << 28), "extent too large");
    STD_TORCH_CHECK(x.stride(1) < (1 << 28), "stride too large");
    Conv p{};
    p.x = x.data_ptr();
    p.weight = weight.data_ptr();
    p.bias = data_or_null<void>(bias);
    p.state = data_or_null<void>(state);
    p.lengths = data_or_null<int64_t>(lengths);
    p.reset = data_or_null<bool>(reset);
    p.x_batch = x.stride(0);
    p.x_time = x.stride(1);
    p.B = static_cast<int>(x.size(0));
    p.T = static_cast<int>(x.size(1));
    p.D = static_cast<int>(x.size(2));
    p.silu = silu;
    return p;
  }

  bool fits(const void* data, int64_t size) const { return reinterpret_cast<uintptr_t>(data) % (size * V) == 0; }

  // Whether vectors of channels can be read and written as a whole, in every tensor.
  bool aligned(const Conv& p) const {
    const int64_t size = x.element_size(), wide = weight.element_size();
    return p.D % V == 0 && p.x_batch % V == 0 && p.x_time % V == 0 && fits(p.x, size) && fits(p.grad, size) &&
           fits(p.weight, wide) && fits(p.state, wide) && fits(p.grad_last, wide);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> short_conv(
    Tensor x, Tensor weight, Optional bias, Optional state, Optional lengths, Optional reset, bool silu) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ScalarType dtype = x.scalar_type(), wide = state_dtype(dtype);
  const Tensors given(x, weight, bias, state, lengths, reset, wide);
  const int64_t width = weight.size(1);
  Conv p = given.conv(silu);
  Tensor y = empty(x, sizes(x), dtype), last = empty(x, {p.B, width - 1, p.D}, wide);
  p.y = y.data_ptr();
  p.last = last.data_ptr();
  run_conv<false>(dtype, p, width, given.aligned(p), nullptr, current_stream(x));
  return {y, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> short_conv_backward(
    Tensor grad, Tensor grad_last, Tensor x, Tensor weight, Optional bias, Optional state, Optional lengths,
    Optional reset, bool silu) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ScalarType dtype = x.scalar_type(), wide = state_dtype(dtype);
  const Tensors given(x, weight, bias, state, lengths, reset, wide);
  const int64_t width = weight.size(1);
  const cudaStream_t stream = current_stream(x);
  expect_gradients(grad, grad_last, x, width);
  grad = dense(grad, dtype);
  grad_last = dense(grad_last, wide);
  Conv p = given.conv(silu);
  p.grad = grad.data_ptr();
  p.grad_last = grad_last.data_ptr();
  Tensor dx = empty(x, sizes(x), dtype), d_state = empty(x, sizes(grad_last), wide);
  Outputs sums{empty(x, {p.D, width}, wide), empty(x, {p.D}, wide)};
  if (int64_t(p.B) * p.D == 0)
    return {dx, torch::stable::new_zeros(weight, sizes(weight)), torch::stable::new_zeros(sums.bias, sizes(sums.bias)), d_state};
  p.dx = dx.data_ptr();
  p.d_state = d_state.data_ptr();
  run_conv<true>(dtype, p, width, given.aligned(p), &sums, stream);
  return {dx, dense(sums.weight, weight.scalar_type()), sums.bias, d_state};
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) {
  m.impl("short_conv", TORCH_BOX(&lrnnx::cuda::short_conv));
  m.impl("short_conv_backward", TORCH_BOX(&lrnnx::cuda::short_conv_backward));
}
