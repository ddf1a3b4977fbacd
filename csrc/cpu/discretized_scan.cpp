// lrnnx::discretized_scan on the CPU and its gradients: coefficients and gains of a rule are made in registers.
//
// A block of 4 channels at step t:
//
//   cache, for all steps     z      | z0 z1 z2 z3 |       one rate for each channel
//   memory                   dt[t]  one number for all channels     v[t]  | v0 v1 v2 v3 |
//   registers                z, dt[t] -> a, gain          h <- a·h + gain·v     a and gain are never stored
//
//   backward                 a and gain are made again
//                            dv[t]   a row              dt's   summed over the block: ddt[block][b][t]
//                            z's     summed over time: dz[b], a row        sum_first adds over blocks and over b
#include "rules.h"
#include "run.h"

namespace lrnnx::cpu {
namespace {

struct Operands {
  const void *z, *dt, *v;
  void *dv, *dz, *ddt;   // gradients; of z for each batch element, of dt for each block of channels
  int64_t width;         // of a block
};

template <class S, int P, int RULE>
struct Discretized {
  using Value = S;
  using Sum = S;
  static constexpr int PLANES = P;
  static constexpr bool TURNS = kTurns<P, RULE>;
  struct Step {
    Number<S, P> a, b;
  };
  template <class D>
  using Here = Made<S, P, RULE, D::value>;

  const S* dt;
  const S *v, *v_row = nullptr;
  S *dv, *dz, *ddt;
  S span = 0, fastest = 0;  // largest |Im z|
  int64_t N;
  int width;
  bool past_caches;
  Lanes<S, P> z, grad_v, sum;
  Lanes<S, 1> grad_dt;

  Discretized(const Job& job, const Block& at, const Operands& o)
      : dt(at_channel<S>(o.dt, at.batch, job.time, 0)),
        v(at_channel<S>(o.v, at.batch * job.time, P * job.channels, at.first)),
        dv(at_channel<S>(o.dv, at.batch * job.time, P * job.channels, at.first)),
        dz(at_channel<S>(o.dz, at.batch, P * job.channels, at.first)),
        ddt(at_channel<S>(o.ddt, at.first / o.width * job.batch + at.batch, job.time, 0)),
        N(job.channels),
        width(at.width),
        past_caches(job.past_caches) {
    z.load(at_channel<S>(o.z, 0, 0, at.first), N, width);
    for (int i = 0; i < width; i++) fastest = std::max(fastest, std::abs(z.get(i).im()));
  }

  void seek(int64_t t) {
    span = dt[t];
    v_row = v ? v + t * P * N : nullptr;
  }
  bool distant() const { return cpu::distant(fastest * span); }
  void foresee(int64_t t) const {
    if (v) cpu::foresee<P>(v + t * P * N, N, width);
  }

  template <class D>
  INLINE Step at(int i, D) const {
    const Here<D> made(z.get(i), span, span);
    return {made.a, made.drive(read<S, P>(v_row, N, i))};
  }

  template <class D>
  INLINE Number<S, P> pull(int i, int, const Number<S, P>& g, const Number<S, P>& before, D) {
    const Here<D> made(z.get(i), span, span);
    Number<S, P> of_gain = number<P>(S(0), S(0));  // no v is given where the gain is one
    if constexpr (rules::Of<RULE>::GAIN != rules::kUnit) of_gain = conj(read<S, P>(v_row, N, i)) * g;
    const auto pulled = made.pull(z.get(i), conj(before) * g, of_gain);
    grad_v.put(i, made.pull_drive(g));
    sum.add(i, pulled.rate);
    grad_dt.put(i, number<1>(pulled.span, S(0)));
    return conj(made.a) * g;
  }

  void clear() {
    grad_v.clear();
    grad_dt.clear();
  }
  void store(int64_t t) {
    grad_v.store(dv + t * P * N, N, width, past_caches);
    ddt[t] = grad_dt.total(width);
  }
  void finish() { sum.store(dz, N, width); }
};

template <class S, int P, bool BACKWARD>
void run(const Job& job, const Operands& operands, int64_t rule) {
  by_rule(rule, [&](auto kind) {
    constexpr int RULE = decltype(kind)::value;
    constexpr bool split = rules::kSplit<rules::Of<RULE>>;
    STD_TORCH_CHECK(!split, "a rule of two spans has none of its own in this scan");
    if constexpr (!split) spread<Discretized<S, P, RULE>, BACKWARD>(job, operands);
  });
}

template <bool BACKWARD>
void run(const Job& job, const Operands& operands, const Extent& x, ScalarType dtype, int64_t rule) {
  by_wide_dtype(dtype, [&](auto s) {
    by_planes(x, [&](auto planes) { run<decltype(s), decltype(planes)::value, BACKWARD>(job, operands, rule); });
  });
}

}  // namespace

std::tuple<Tensor, Tensor> discretized_scan(
    Tensor z, Tensor dt, Tensor v, Optional h0, Optional lengths, Optional reset, bool reverse, int64_t rule) {
  const Extent x(whole("v", v, {4}));
  const ScalarType dtype = v.scalar_type(), wide = state_dtype(dtype);
  const Expect expect(v);
  expect.shaped("z", z, {x.planes, x.channels});
  expect.shaped("dt", dt, {x.batch, x.time});
  z = dense(z, wide);
  dt = dense(dt, wide);
  v = dense(v, wide);
  const Inputs inputs(v, h0, lengths, reset, wide);
  Tensor out = fresh_like(v, wide), last = state_like(v, wide);
  Job job = inputs.job(v, reverse);
  job.out = out.data_ptr();
  job.last = last.data_ptr();
  Operands operands{};
  operands.z = z.data_ptr();
  operands.dt = dt.data_ptr();
  operands.v = v.data_ptr();
  operands.width = block_width(x.batch, x.channels);
  run<false>(job, operands, x, wide, rule);
  return {dense(out, dtype), last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> discretized_scan_backward(
    Tensor grad, Tensor grad_last, Tensor z, Tensor dt, Optional v, Tensor states, Optional h0, Optional lengths,
    Optional reset, bool reverse, int64_t rule) {
  const Extent x(whole("states", states, {4}));
  const ScalarType dtype = states.scalar_type(), wide = state_dtype(dtype);
  const Expect expect(states);
  expect.shaped("z", z, {x.planes, x.channels});
  expect.shaped("dt", dt, {x.batch, x.time});
  expect.shaped("v", v, sizes(states));
  expect.shaped("grad", grad, sizes(states));
  expect.shaped("grad_last", grad_last, state_sizes(states));
  grad = dense(grad, wide);
  grad_last = dense(grad_last, wide);
  states = dense(states, wide);
  v = dense(v, wide);
  const Tensor rate = dense(z, wide), steps = dense(dt, wide);
  const Inputs inputs(states, h0, lengths, reset, wide);
  STD_TORCH_CHECK(v || rules::is<rules::Impulse>(rule), "this rule's gradients need v");
  Tensor dv = fresh_like(states, wide), dh0 = torch::stable::empty_like(grad_last);
  Tensor dz = torch::stable::empty_like(grad_last);
  Job job = inputs.job(states, reverse);
  job.states = states.data_ptr();
  job.grad = grad.data_ptr();
  job.first = grad_last.data_ptr();
  job.last = dh0.data_ptr();
  Operands operands{};
  operands.width = block_width(x.batch, x.channels);
  Tensor ddt = partial_times(steps, x, operands.width);
  operands.z = rate.data_ptr();
  operands.dt = steps.data_ptr();
  operands.v = data_or_null<void>(v);
  operands.dv = dv.data_ptr();
  operands.dz = dz.data_ptr();
  operands.ddt = ddt.data_ptr();
  run<true>(job, operands, x, wide, rule);
  dz = dense(torch::stable::reshape(sum_first(dz), sizes(z)), z.scalar_type());
  ddt = dense(torch::stable::reshape(sum_first(ddt), sizes(dt)), dt.scalar_type());
  return {dz, ddt, dense(dv, dtype), dh0};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("discretized_scan", TORCH_BOX(&lrnnx::cpu::discretized_scan));
  m.impl("discretized_scan_backward", TORCH_BOX(&lrnnx::cpu::discretized_scan_backward));
}
