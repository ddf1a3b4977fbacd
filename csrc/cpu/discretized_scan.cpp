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
  static_assert(kRules == 5, "a rule of rules.def is missing below");
  using Value = S;
  using Sum = S;
  static constexpr int PLANES = P;
  static constexpr bool TURNS = P == 2 && RULE != kBilinear;
  struct Step {
    Number<S, P> a, b;
  };
  struct Made {
    Number<S, P> w, a, gain;  // gain per unit of time; of the bilinear rule 1/(1 − w/2)
  };

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

  template <bool DISTANT>
  INLINE Made make(int i) const {
    const Number<S, P> rate = z.get(i), one = number<P>(S(1), S(0));
    Made m{span * rate, one, one};
    if constexpr (RULE == kBilinear) {
      m.gain = inverse(one + S(-0.5) * m.w);
      m.a = (one + S(0.5) * m.w) * m.gain;
      return m;
    }
    const Grown<S, P, DISTANT> grown(rate, span);
    m.a = number<P>(grown.value.re(), grown.value.im());
    if constexpr (RULE == kZoh) m.gain = less_one_over(m.w, grown.less_one);
    return m;
  }

  template <class D>
  INLINE Step at(int i, D) const {
    const Made m = make<D::value>(i);
    const Number<S, P> input = read<S, P>(v_row, N, i);
    if constexpr (RULE == kDirac) return {m.a, input};
    if constexpr (RULE == kEuler) return {m.a, span * input};
    return {m.a, (span * m.gain) * input};
  }

  template <class D>
  INLINE Number<S, P> pull(int i, int, const Number<S, P>& g, const Number<S, P>& before, D) {
    const Made m = make<D::value>(i);
    const Number<S, P> a_by_w = RULE == kBilinear ? m.gain * m.gain : m.a;
    const Number<S, P> by_w = conj(a_by_w * before) * g;
    Number<S, P> by_z = span * by_w;
    S by_dt = dot(z.get(i), by_w);
    if constexpr (RULE == kDirac) {
      grad_v.put(i, g);
    } else {
      const Number<S, P> r = conj(read<S, P>(v_row, N, i)) * g;
      if constexpr (RULE == kEuler) {
        grad_v.put(i, span * g);
        by_dt += r.re();
      } else {
        const Number<S, P> slope = RULE == kZoh ? slope_of_that(m.w, m.a, m.gain) : S(0.5) * a_by_w;
        grad_v.put(i, conj(span * m.gain) * g);
        by_z = by_z + (span * span) * (conj(slope) * r);
        by_dt += dot(a_by_w, r);  // the gain's derivative too
      }
    }
    sum.add(i, by_z);
    grad_dt.put(i, number<1>(by_dt, S(0)));
    return conj(m.a) * g;
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
    STD_TORCH_CHECK(RULE != kAsynchronous, "dirac scans what asynchronous leaves to a scan");
    if constexpr (RULE != kAsynchronous) spread<Discretized<S, P, RULE>, BACKWARD>(job, operands);
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
  STD_TORCH_CHECK(v || rule == kDirac, "this rule's gradients need v");
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
