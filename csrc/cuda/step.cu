// lrnnx::diagonal_step on CUDA: lanes for the states of a group, which a reduction over them contracts.
#include "discretize.cuh"
#include "request.h"

namespace lrnnx::cuda {
namespace {

constexpr int kGiven = -1, kAsynchronous = 4;  // rules besides those of discretize.cuh, as step.py numbers them
constexpr int kStepThreads = 128;
constexpr int64_t kHeldThreads = 1 << 17;  // about half of what a large GPU runs at once

struct Operand {  // broadcasts to (B, G, P, n): strides of 0
  const void* data;
  int batch, group, plane, state;
};

struct Step {
  Operand h, a, gain, c, step, v, gate, after;
  const void *direct, *dt;
  void* w;
  int B, G, N, lanes, rule;
  bool softplus, shared_input;
};

template <class S>
DEVICE S soft_plus(S x) {
  const S e = exponential(-fabs(x));
  return fmax(x, S(0)) + log1p(e);
}

template <class S, int PL>
struct Place {
  int b, g, n;
  DEVICE int64_t in(const Operand& x) const {
    return int64_t(b) * x.batch + int64_t(g) * x.group + int64_t(n) * x.state;
  }
  template <class E = S>
  DEVICE Val<S, PL, 1> of(const Operand& x) const {
    Val<S, PL, 1> r;
    const E* const from = static_cast<const E*>(x.data) + in(x);
    UNROLL for (int plane = 0; plane < PL; plane++) r.v[plane][0] = static_cast<S>(from[plane * x.plane]);
    return r;
  }
};

template <class E, int PL, bool RULED>
__global__ void __launch_bounds__(kStepThreads) diagonal_step_kernel(Step p) {
  using S = typename Storage<E>::Sum;
  using X = Val<S, PL, 1>;
  using Source = Ruled<S, PL, 1, false>;
  const int thread = blockIdx.x * kStepThreads + threadIdx.x, item = thread / p.lanes, lane = thread % p.lanes;
  const bool inside = item < p.B * p.G;
  Place<S, PL> at{item / p.G, item % p.G, 0};
  const auto step_of = [&] {
    const S step = p.step.data ? Place<S, 1>{at.b, at.g, at.n}.of(p.step).v[0][0] : S(1);
    return p.softplus ? soft_plus(step) : step;
  };
  S sum = 0, step = RULED && inside && !p.step.state ? step_of() : S(1);
  const S elapsed = p.dt && inside ? static_cast<const S*>(p.dt)[at.b] : S(1);
  for (at.n = lane; inside && at.n < p.N; at.n += p.lanes) {
    X a = at.of(p.a), drive = at.template of<E>(p.v);
    if (p.shared_input) drive.v[PL - 1][0] *= PL == 1;  // the input is real
    if constexpr (RULED) {
      if (p.step.state) step = step_of();  // else all states share one
      Source source;
      source.z = a;
      source.rule = p.rule == kAsynchronous ? int(kZoh) : p.rule;
      source.exponential.init(a);
      typename Source::In in{};
      in.dt = step;
      X gain;
      if (p.rule == kAsynchronous) gain = source.gain(in, source.at(in)).gain;
      in.dt = step * elapsed;
      a = source.at(in);
      if (p.rule != kAsynchronous) gain = source.gain(in, a).gain;
      drive = mul(gain, drive);
    }
    if (p.gain.data) drive = mul(at.of(p.gain), drive);
    const X after = mad(a, at.of(p.h), drive);
    S* const out = static_cast<S*>(const_cast<void*>(p.after.data)) + at.in(p.after);
    UNROLL for (int plane = 0; plane < PL; plane++) out[plane * p.after.plane] = after.v[plane][0];
    if (p.c.data) sum += real_sum(mul(at.of(p.c), after));
  }
  if (!p.c.data) return;
  for (int distance = p.lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (!inside || lane) return;
  const Place<S, 1> group{at.b, at.g, 0};
  if (p.direct) sum = fma(static_cast<const S*>(p.direct)[at.g], group.template of<E>(p.v).v[0][0], sum);
  if (p.gate.data) {
    const S z = group.template of<E>(p.gate).v[0][0];
    sum *= z * sigmoid(z);
  }
  static_cast<E*>(p.w)[item] = static_cast<E>(sum);
}

template <class E, int PL>
void start(const Step& p, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((int64_t(p.B) * p.G * p.lanes + kStepThreads - 1) / kStepThreads);
  if (p.rule == kGiven)
    diagonal_step_kernel<E, PL, false><<<blocks, kStepThreads, 0, stream>>>(p);
  else
    diagonal_step_kernel<E, PL, true><<<blocks, kStepThreads, 0, stream>>>(p);
  check(cudaGetLastError());
}

template <class E>
void by_planes(const Step& p, int64_t planes, cudaStream_t stream) {
  planes == 1 ? start<E, 1>(p, stream) : start<E, 2>(p, stream);
}

enum Axes { kAll, kNoPlanes, kGroups };  // (B, G, P, n), (B, G, n) or (B, G), of which the first may be missing

Operand operand(const Tensor& x, Axes axes = kAll) {
  Operand r{x.data_ptr(), 0, 0, 0, 0};
  std::vector<int*> strides{&r.batch, &r.group, &r.plane, &r.state};
  if (axes != kAll) strides.erase(strides.begin() + 2);
  if (axes == kGroups) strides.pop_back();
  const int64_t missing = static_cast<int64_t>(strides.size()) - x.dim();
  STD_TORCH_CHECK(missing >= 0, "an operand has too many dimensions");
  for (int64_t d = 0; d < x.dim(); d++)
    if (x.size(d) > 1) *strides[d + missing] = static_cast<int>(x.stride(d));
  return r;
}

Tensor as(const Tensor& x, ScalarType dtype) { return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype); }
Optional as(const Optional& x, ScalarType dtype) { return x ? Optional(as(*x, dtype)) : std::nullopt; }

}  // namespace

std::tuple<Tensor, Tensor> diagonal_step(
    Tensor v, Tensor h, Tensor a, Optional gain, Optional c, Optional direct, Optional step, Optional dt, Optional gate,
    int64_t rule, bool softplus) {
  const ScalarType dtype = v.scalar_type(), wide = h.scalar_type();
  STD_TORCH_CHECK(wide == state_dtype(dtype), "v and h have dtypes that do not go together");
  STD_TORCH_CHECK(h.dim() == 4 && (h.size(2) == 1 || h.size(2) == 2), "h must be (B, G, P, n)");
  a = as(a, wide);
  gain = as(gain, wide);
  c = as(c, wide);
  step = as(step, wide);
  direct = dense(direct, wide);
  dt = dense(dt, wide);
  gate = as(gate, dtype);
  Tensor after = torch::stable::empty_like(h);
  Tensor w = torch::stable::new_empty(v, c ? std::vector<int64_t>{h.size(0), h.size(1)} : std::vector<int64_t>{0}, dtype);
  Step p{};
  p.shared_input = v.dim() == 2;
  p.h = operand(h);
  p.a = operand(a);
  p.v = operand(v, p.shared_input ? kGroups : kAll);
  p.after = operand(after);
  if (gain) p.gain = operand(*gain);
  if (c) p.c = operand(*c);
  if (step) p.step = operand(*step, kNoPlanes);
  if (gate) p.gate = operand(*gate, kGroups);
  p.w = w.data_ptr();
  p.direct = data_or_null<void>(direct);
  p.dt = data_or_null<void>(dt);
  p.B = static_cast<int>(h.size(0));
  p.G = static_cast<int>(h.size(1));
  p.N = static_cast<int>(h.size(3));
  p.rule = static_cast<int>(rule);
  p.softplus = softplus;
  p.lanes = 1;
  while (p.lanes < 32 && p.lanes < p.N) p.lanes *= 2;
  // Lanes with a state each are soonest done; where there are more than a GPU holds, four states share what is done once.
  for (int halved = 0; halved < 2 && p.lanes > 1 && int64_t(p.B) * p.G * p.lanes > kHeldThreads; halved++) p.lanes /= 2;
  STD_TORCH_CHECK(h.numel() < (int64_t(1) << 31), "state too large");
  if (h.numel() == 0) return {w, after};
  const cudaStream_t stream = current_stream(v);
  const int64_t planes = h.size(2);
  by_dtype(dtype, [&](auto e) { by_planes<decltype(e)>(p, planes, stream); });
  return {w, after};
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) {
  m.impl("diagonal_step", TORCH_BOX(&lrnnx::cuda::diagonal_step));
}
