// lrnnx::short_conv on the CPU and its gradients: a block of channels walks through time, taps in its rows.
//
// W = 3 taps, a block of 4 channels at step t:
//
//   memory                               cache, for all steps
//   x[t]        | . . . . |      ×       weight[0] | . . . . |
//   x[t − 1]    | . . . . |      ×       weight[1] | . . . . |      left out if a sequence started at t  (seen = 0)
//   x[t − 2]    | . . . . |      ×       weight[2] | . . . . |      left out if one started at t − 1 or t  (seen < 2)
//                                   +    bias      | . . . . |      -> out, SiLU -> y[t]
//   rows before step 0 are those of the state; without a state they are zero
//
//   backward    g[t]·weight[k] is added to dx[t − k] in memory (to d_state before step 0)
//               g[t]·x[t − k] is added to the tap's sum, g[t] to the bias's: both in the cache, stored at the end
#include <array>

#include "run.h"

namespace lrnnx::cpu {
namespace {

constexpr int kWidest = 4;  // as short_conv.py has it

struct Problem {
  const void *x, *weight, *bias, *state;      // x strided; weight (W, D); bias and state may be null
  const void *grad, *grad_last;               // backward only
  void *y, *last;                             // forward only
  void *dx, *d_taps, *d_state;                // backward only; d_taps (B, 1 + W, D), the bias first
  const int64_t* lengths;
  const bool* reset;
  int64_t batch, time, channels, x_batch, x_time;
  bool silu;
};

// What both directions know of one batch element and block of channels.
template <class S, int W>
struct Taps {
  static constexpr int SPAN = W - 1;
  const Problem& p;
  const Block& at;
  const S *x, *state;
  const bool* reset;
  int64_t D, length;
  std::array<Lanes<S, 1>, W> weight;  // by distance: weight[0] meets the present sample
  Lanes<S, 1> bias;
  int seen = SPAN;  // how many of the inputs before the present one are of the same sequence

  Taps(const Problem& p, const Block& at)
      : p(p), at(at),
        x(at_channel<S>(p.x, at.batch, p.x_batch, at.first)),
        state(at_channel<S>(p.state, at.batch * SPAN, p.channels, at.first)),
        reset(at_channel<bool>(p.reset, at.batch, p.time, 0)),
        D(p.channels),
        length(p.lengths ? std::clamp<int64_t>(p.lengths[at.batch], 0, p.time) : p.time) {
    for (int k = 0; k < W; k++) weight[k].load(at_channel<S>(p.weight, SPAN - k, D, at.first), D, at.width);
    bias.load(at_channel<S>(p.bias, 0, 0, at.first), D, at.width);
  }

  void seek(int64_t t) { seen = reset && reset[t] ? 0 : std::min(seen + 1, SPAN); }

  // The inputs of step t − k; null where they are zero.
  const S* row(int64_t t) const {
    if (t >= 0) return x + t * p.x_time;
    return state ? state + (SPAN + t) * D : nullptr;
  }

  // Sums before SiLU at step t.
  void sum(int64_t t, Lanes<S, 1>& out) const {
    const S* now = row(t);
    each(at.width, [&](int i, int) INLINED { out.value[0][i] = fused(weight[0].value[0][i], now[i], bias.value[0][i]); });
    for (int k = 1; k <= seen; k++) {
      if (const S* before = row(t - k))
        each(at.width, [&](int i, int) INLINED {
          out.value[0][i] = fused(weight[k].value[0][i], before[i], out.value[0][i]);
        });
    }
  }
};

template <class S, int W>
void forward(const Problem& p, const Block& at) {
  Taps<S, W> taps(p, at);
  constexpr int span = W - 1;
  const int64_t D = p.channels;
  S* const y = at_channel<S>(p.y, at.batch * p.time, D, at.first);
  S* const last = at_channel<S>(p.last, at.batch * span, D, at.first);
  Lanes<S, 1> out;
  for (int64_t t = 0; t < taps.length; t++) {
    taps.seek(t);
    taps.sum(t, out);
    if (p.silu)
      each(at.width, [&](int i, int) INLINED { out.value[0][i] *= sigmoid(out.value[0][i]); });
    out.store(y + t * D, D, at.width);
  }
  for (int64_t t = taps.length; t < p.time; t++) std::memset(y + t * D, 0, at.width * sizeof(S));
  for (int k = 0; k < span; k++) {  // of distance k from the last valid step
    const S* from = taps.length == 0 || k <= taps.seen ? taps.row(taps.length - 1 - k) : nullptr;
    S* to = last + (span - 1 - k) * D;
    if (from) std::memcpy(to, from, at.width * sizeof(S)); else std::memset(to, 0, at.width * sizeof(S));
  }
}

template <class S, int W>
void backward(const Problem& p, const Block& at) {
  Taps<S, W> taps(p, at);
  constexpr int span = W - 1;
  const int64_t D = p.channels;
  const S* const grad = at_channel<S>(p.grad, at.batch * p.time, D, at.first);
  const S* const grad_last = at_channel<S>(p.grad_last, at.batch * span, D, at.first);
  S* const dx = at_channel<S>(p.dx, at.batch * p.time, D, at.first);
  S* const d_state = at_channel<S>(p.d_state, at.batch * span, D, at.first);
  std::array<Lanes<S, 1>, W + 1> d_taps;
  Lanes<S, 1> g;
  const auto row = [&](int64_t t) { return t >= 0 ? dx + t * D : d_state + (span + t) * D; };
  for (int64_t t = -span; t < p.time; t++) std::memset(row(t), 0, at.width * sizeof(S));
  for (int64_t t = 0; t < taps.length; t++) {
    taps.seek(t);
    const S* out_grad = grad + t * D;
    if (p.silu) {
      taps.sum(t, g);
      each(at.width, [&](int i, int) INLINED {
        const S v = g.value[0][i], s = sigmoid(v);
        g.value[0][i] = out_grad[i] * s * (1 + v * (1 - s));
      });
    } else {
      g.load(out_grad, D, at.width);
    }
    each(at.width, [&](int i, int) INLINED { d_taps[0].value[0][i] += g.value[0][i]; });
    for (int k = 0; k <= taps.seen; k++) {
      S* to = row(t - k);
      each(at.width, [&](int i, int) INLINED { to[i] = fused(taps.weight[k].value[0][i], g.value[0][i], to[i]); });
      if (const S* from = taps.row(t - k))
        each(at.width, [&](int i, int) INLINED {
          S& total = d_taps[W - k].value[0][i];
          total = fused(g.value[0][i], from[i], total);
        });
    }
  }
  for (int k = 0; k < span; k++) {
    if (taps.length > 0 && k > taps.seen) break;
    S* to = row(taps.length - 1 - k);
    const S* from = grad_last + (span - 1 - k) * D;
    each(at.width, [&](int i, int) INLINED { to[i] += from[i]; });
  }
  for (int j = 0; j <= W; j++)
    d_taps[j].store(at_channel<S>(p.d_taps, at.batch * (W + 1) + j, D, at.first), D, at.width);
}

template <class S, int W, bool BACKWARD>
void spread_over(const Problem& p) {
  if (p.batch * p.channels == 0) return;
  const int64_t width = block_width(p.batch, p.channels), blocks = (p.channels + width - 1) / width;
  const int64_t grain = kWorthThread / (p.time * width) + 1;
  torch::stable::parallel_for(0, p.batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task % blocks * width;
      const Block block{task / blocks, first, static_cast<int>(std::min(width, p.channels - first))};
      if constexpr (BACKWARD) backward<S, W>(p, block); else forward<S, W>(p, block);
    }
  });
}

template <bool BACKWARD>
void run(const Problem& p, ScalarType dtype, int64_t width) {
  by_wide_dtype(dtype, [&](auto s) {
    using S = decltype(s);
    if (width == 1) return spread_over<S, 1, BACKWARD>(p);
    if (width == 2) return spread_over<S, 2, BACKWARD>(p);
    if (width == 3) return spread_over<S, 3, BACKWARD>(p);
    if (width == kWidest) return spread_over<S, kWidest, BACKWARD>(p);
    STD_TORCH_CHECK(false, "short_conv takes 1 to 4 taps");
  });
}

// What both passes read, in the precision of sums.
struct Given {
  Tensor x, weight;
  Optional bias, state, lengths, reset;

  Given(const Tensor& x_, const Tensor& weight_, const Optional& bias_, const Optional& state_,
        const Optional& lengths_, const Optional& reset_, ScalarType wide)
      : x(whole("x", x_, {3}).scalar_type() == wide && (x_.size(2) == 1 || x_.stride(2) == 1) ? x_ : dense(x_, wide)),
        weight(dense(torch::stable::transpose(whole("weight", weight_, {2}), 0, 1), wide)),
        bias(dense(bias_, wide)),
        state(dense(state_, wide)),
        lengths(dense(lengths_, ScalarType::Long)),
        reset(dense(reset_, ScalarType::Bool)) {
    expect_taps(x_, weight_, bias_, state_, lengths_, reset_);
  }

  Problem problem(bool silu) const {
    Problem p{};
    p.x = x.data_ptr();
    p.weight = weight.data_ptr();
    p.bias = data_or_null<void>(bias);
    p.state = data_or_null<void>(state);
    p.lengths = data_or_null<int64_t>(lengths);
    p.reset = data_or_null<bool>(reset);
    p.batch = x.size(0);
    p.time = x.size(1);
    p.channels = x.size(2);
    p.x_batch = x.stride(0);
    p.x_time = x.stride(1);
    p.silu = silu;
    return p;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> short_conv(
    Tensor x, Tensor weight, Optional bias, Optional state, Optional lengths, Optional reset, bool silu) {
  const ScalarType dtype = x.scalar_type(), wide = state_dtype(dtype);
  const Given given(x, weight, bias, state, lengths, reset, wide);
  const int64_t width = weight.size(1);
  Problem p = given.problem(silu);
  Tensor y = fresh(torch::stable::new_empty(x, {p.batch, p.time, p.channels}, wide));
  Tensor last = torch::stable::new_empty(x, {p.batch, width - 1, p.channels}, wide);
  p.y = y.data_ptr();
  p.last = last.data_ptr();
  run<false>(p, wide, width);
  return {dense(y, dtype), last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> short_conv_backward(
    Tensor grad, Tensor grad_last, Tensor x, Tensor weight, Optional bias, Optional state, Optional lengths,
    Optional reset, bool silu) {
  const ScalarType dtype = x.scalar_type(), wide = state_dtype(dtype);
  const Given given(x, weight, bias, state, lengths, reset, wide);
  const int64_t width = weight.size(1);
  expect_gradients(grad, grad_last, x, width);
  grad = dense(grad, wide);
  grad_last = dense(grad_last, wide);
  Problem p = given.problem(silu);
  Tensor dx = fresh(torch::stable::new_empty(x, {p.batch, p.time, p.channels}, wide));
  Tensor d_taps = torch::stable::new_empty(x, {p.batch, width + 1, p.channels}, wide);
  Tensor d_state = torch::stable::empty_like(grad_last);
  p.grad = grad.data_ptr();
  p.grad_last = grad_last.data_ptr();
  p.dx = dx.data_ptr();
  p.d_taps = d_taps.data_ptr();
  p.d_state = d_state.data_ptr();
  run<true>(p, wide, width);
  Tensor sums = torch::stable::select(sum_first(d_taps), 0, 0);
  const Tensor taps = torch::stable::transpose(torch::stable::clone(torch::stable::narrow(sums, 0, 1, width)), 0, 1);
  return {dense(dx, dtype), dense(taps, weight.scalar_type()), torch::stable::select(sums, 0, 0),
          d_state};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("short_conv", TORCH_BOX(&lrnnx::cpu::short_conv));
  m.impl("short_conv_backward", TORCH_BOX(&lrnnx::cpu::short_conv_backward));
}
