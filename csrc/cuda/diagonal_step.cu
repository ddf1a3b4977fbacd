// lrnnx::diagonal_step on CUDA: lanes have the states of a group, and a sum over the lanes gives the group's output.
//
// At a toy size: 2 items (b, g) with N = 8 states each, V = 4 states for a lane, so p.lanes = 2:
//
//   thread       0             1             2             3
//   item         0             0             1             1
//   states       0 1 2 3       4 5 6 7       0 1 2 3       4 5 6 7       more than 32 lanes hold: it goes on by lanes·V
//   registers    h, a, gain, c, v: V numbers of each, read from global memory before anything is computed
//
//   every thread    after = a·h + gain·v  -> global
//                   sum = Re(c·after), added over the lanes of an item by shuffles
//   lane 0          w[item] = (sum + direct·v)·silu(gate)  -> global
#include "chained.cuh"
#include "discretize.cuh"

namespace lrnnx::cuda {
namespace {

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

template <class S, int PL, int V>
struct Place {
  int b, g, n;
  DEVICE int64_t in(const Operand& x) const {
    return int64_t(b) * x.batch + int64_t(g) * x.group + int64_t(n) * x.state;
  }
  template <class E = S>
  DEVICE Val<S, PL, V> of(const Operand& x) const {
    Val<S, PL, V> r;
    const E* const from = static_cast<const E*>(x.data) + in(x);
    UNROLL for (int plane = 0; plane < PL; plane++) {
      if (V == 1 || x.state)
        load_packed(r.v[plane], from + plane * x.plane);
      else
        UNROLL for (int i = 0; i < V; i++) r.v[plane][i] = static_cast<S>(from[plane * x.plane]);
    }
    return r;
  }
};

// V states of a lane lie side by side, or all share one number of an operand.
template <class E, int PL, bool RULED, int V>
__global__ void __launch_bounds__(kStepThreads) diagonal_step_kernel(Step p) {
  using S = typename Storage<E>::Sum;
  using X = Val<S, PL, V>;
  using Source = Ruled<S, PL, V, false>;
  await_launch_before();
  const int thread = blockIdx.x * kStepThreads + threadIdx.x, item = thread / p.lanes, lane = thread % p.lanes;
  const bool inside = item < p.B * p.G;
  Place<S, PL, V> at{item / p.G, item % p.G, 0};
  const S elapsed = p.dt && inside ? static_cast<const S*>(p.dt)[at.b] : S(1);
  const Place<S, 1, 1> group{at.b, at.g, 0};
  const S direct = p.direct && inside ? static_cast<const S*>(p.direct)[at.g] : S(0);
  const S given = p.direct && inside ? group.template of<E>(p.v).v[0][0] : S(0);
  const S logit = p.gate.data && inside ? group.template of<E>(p.gate).v[0][0] : S(0);
  struct {
    X a, drive, gain, c, h;
    S step;
  } x;
  const auto read = [&] {  // all that is needed, before anything is computed
    x.a = at.of(p.a);
    x.drive = at.template of<E>(p.v);
    x.h = at.of(p.h);
    if (p.gain.data) x.gain = at.of(p.gain);
    if (p.c.data) x.c = at.of(p.c);
    x.step = RULED && p.step.data ? Place<S, 1, 1>{at.b, at.g, at.n}.of(p.step).v[0][0] : S(1);
  };
  S sum = 0, step = 0;
  at.n = lane * V;
  bool more = inside && at.n < p.N;
  if (more) read();
  for (bool first = true; more; first = false) {
    X a = x.a, drive = x.drive;
    if (p.shared_input) UNROLL for (int i = 0; i < V; i++) drive.v[PL - 1][i] *= PL == 1;  // the input is real
    if constexpr (RULED) {
      if (first || p.step.state) step = p.softplus ? soft_plus(x.step) : x.step;  // else all states share one
      Source source;
      source.rate = a;
      source.rule = rules::evenly(p.rule);
      source.exponential.init(a);
      typename Source::In in{};
      const auto decay = [&] { return source.far(in) ? source.template at<true>(in) : source.template at<false>(in); };
      in.dt = step;
      X gain;
      if (rules::is<rules::Split>(p.rule)) gain = source.gain(in, decay()).value;
      in.dt = step * elapsed;
      a = decay();
      if (!rules::is<rules::Split>(p.rule)) gain = source.gain(in, a).value;
      drive = mul(gain, drive);
    }
    if (p.gain.data) drive = mul(x.gain, drive);
    const X after = mad(a, x.h, drive);
    S* const out = static_cast<S*>(const_cast<void*>(p.after.data)) + at.in(p.after);
    UNROLL for (int plane = 0; plane < PL; plane++) store_packed(out + plane * p.after.plane, after.v[plane]);
    if (p.c.data) sum += real_sum(mul(x.c, after));
    at.n += p.lanes * V;
    more = at.n < p.N;
    if (more) read();
  }
  if (!p.c.data) return;
  for (int distance = p.lanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (!inside || lane) return;
  sum = fma(direct, given, sum);
  if (p.gate.data) sum *= logit * sigmoid(logit);
  static_cast<E*>(p.w)[item] = static_cast<E>(sum);
}

constexpr int kQuad = 4;

// Whether four states of an operand can be read at once, or are alike.
bool quads(const Operand& x, int64_t size) {
  const bool apart = (x.batch | x.group | x.plane) % kQuad || reinterpret_cast<uintptr_t>(x.data) % (size * kQuad);
  return !x.data || x.state == 0 || (x.state == 1 && !apart);
}

template <class E, int PL, int V>
void start(Step p, cudaStream_t stream) {
  const int64_t groups = int64_t(p.B) * p.G;
  p.lanes = 1;
  while (p.lanes < 32 && p.lanes * V < p.N) p.lanes *= 2;
  // One state for a lane is fastest. With more lanes than a GPU holds, up to four states share the work of one lane.
  for (int halved = 0; V == 1 && halved < 2 && p.lanes > 1 && groups * p.lanes > kHeldThreads; halved++) p.lanes /= 2;
  const unsigned blocks = static_cast<unsigned>((groups * p.lanes + kStepThreads - 1) / kStepThreads);
  const auto run = [&](auto kernel) { start_chained(kernel, blocks, kStepThreads, stream, p); };
  p.rule == kGiven ? run(diagonal_step_kernel<E, PL, false, V>) : run(diagonal_step_kernel<E, PL, true, V>);
}

template <class E, int PL>
void by_width(const Step& p, cudaStream_t stream) {
  using S = typename Storage<E>::Sum;
  bool wide = p.N % kQuad == 0 && p.step.state == 0 && quads(p.v, sizeof(E));
  for (const Operand* x : {&p.h, &p.a, &p.gain, &p.c, &p.after}) wide &= quads(*x, sizeof(S));
  if constexpr (sizeof(S) == sizeof(float))
    if (wide) return start<E, PL, kQuad>(p, stream);
  start<E, PL, 1>(p, stream);
}

template <class E>
void by_planes(const Step& p, int64_t planes, cudaStream_t stream) {
  planes == 1 ? by_width<E, 1>(p, stream) : by_width<E, 2>(p, stream);
}

enum Axes { kAll, kNoPlanes, kGroups };  // (B, G, P, n), (B, G, n) or (B, G), of which the first may be missing

Operand operand(const Tensor& x, Axes axes = kAll) {
  Operand r{x.data_ptr(), 0, 0, 0, 0};
  std::vector<int*> strides{&r.batch, &r.group, &r.plane, &r.state};
  if (axes != kAll) strides.erase(strides.begin() + 2);
  if (axes == kGroups) strides.pop_back();
  const int64_t missing = static_cast<int64_t>(strides.size()) - x.dim();
  for (int64_t d = 0; d < x.dim(); d++)
    if (x.size(d) > 1) *strides[d + missing] = static_cast<int>(x.stride(d));
  return r;
}

}  // namespace

std::tuple<Tensor, Tensor> diagonal_step(
    Tensor v, Tensor h, Tensor a, Optional gain, Optional c, Optional direct, Optional step, Optional dt, Optional gate,
    int64_t rule, bool softplus) {
  const torch::stable::accelerator::DeviceGuard guard(v.get_device_index());
  const ScalarType dtype = v.scalar_type(), wide = h.scalar_type();
  STD_TORCH_CHECK(wide == state_dtype(dtype), "v and h have dtypes that do not go together");
  expect_step(v, h, a, gain, c, direct, step, dt, gate);
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
  STD_TORCH_CHECK(h.numel() < (int64_t(1) << 31), "state too large");
  STD_TORCH_CHECK(rule >= kGiven && rule < kRules, "there are no kernels for rule ", rule);
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
