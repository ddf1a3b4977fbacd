// lrnnx::rglru_scan on the CPU and its gradients: from the logits of the gates, in registers.
//
// A block of 4 channels at step t:
//
//   cache, for all steps    rate                          | . . . . |
//   memory                  gate[t], input_gate[t], u[t]  | . . . . |     dt[t], first[t]: one number for all channels
//   registers               r = σ(gate), i = σ(input_gate), a = exp(−rate·r·dt), root = √(1 − a²)
//                           h <- a·h + root·i·u           (i·u where a sequence starts: `first`)
//
//   backward                d_gate[t], d_input_gate[t], du[t]: rows      ddt[block][b][t]: summed over the block
//                           d_rate[b]: summed over time
#include <cmath>

#include "run.h"

namespace lrnnx::cpu {
namespace {

constexpr double kSlope = 1000;  // the steepest derivative of a square root, as rglru_scan.py has it

struct Operands {
  const void *gate, *input_gate, *u, *rate, *dt;
  const bool* first;
  void *d_gate, *d_input_gate, *du, *d_rate, *ddt;  // d_rate for each batch element, ddt for each block of channels
  int64_t width;
};

template <class S>
struct Gates {
  using Value = S;
  using Sum = S;
  static constexpr int PLANES = 1;
  static constexpr bool TURNS = false;
  static constexpr bool distant() { return false; }
  using Real1 = Number<S, 1>;
  struct Step {
    Real1 a, b;
  };
  struct Made {
    S r, i, a, root;  // root of 1 − a²
  };

  const S *gate, *input_gate, *u, *gate_row = nullptr, *input_gate_row = nullptr, *u_row = nullptr;
  S *d_gate, *d_input_gate, *du;
  const S* dt;
  const bool* first;
  S *d_rate, *ddt;
  int64_t N;
  S span = 1, start = 0;  // start: 1 where the input enters whole, a number since a condition does not vectorize
  int width;
  bool past_caches;
  Lanes<S, 1> rate, grad_gate, grad_input_gate, grad_u, sum, grad_dt;

  Gates(const Job& job, const Block& at, const Operands& o)
      : gate(at_channel<S>(o.gate, at.batch * job.time, job.channels, at.first)),
        input_gate(at_channel<S>(o.input_gate, at.batch * job.time, job.channels, at.first)),
        u(at_channel<S>(o.u, at.batch * job.time, job.channels, at.first)),
        d_gate(at_channel<S>(o.d_gate, at.batch * job.time, job.channels, at.first)),
        d_input_gate(at_channel<S>(o.d_input_gate, at.batch * job.time, job.channels, at.first)),
        du(at_channel<S>(o.du, at.batch * job.time, job.channels, at.first)),
        dt(at_channel<S>(o.dt, at.batch, job.time, 0)),
        first(at_channel<bool>(o.first, at.batch, job.time, 0)),
        d_rate(at_channel<S>(o.d_rate, at.batch, job.channels, at.first)),
        ddt(at_channel<S>(o.ddt, at.first / o.width * job.batch + at.batch, job.time, 0)),
        N(job.channels),
        width(at.width),
        past_caches(job.past_caches) {
    rate.load(at_channel<S>(o.rate, 0, 0, at.first), N, width);
  }

  void seek(int64_t t) {
    gate_row = gate + t * N;
    input_gate_row = input_gate + t * N;
    u_row = u + t * N;
    span = dt ? dt[t] : S(1);
    start = first && first[t];
  }
  void foresee(int64_t t) const {
    for (const S* from : {gate, input_gate, u}) cpu::foresee<1>(from + t * N, N, width);
  }

  INLINE Made make(int i) const {
    const S r = sigmoid<S>(gate_row[i]), in = sigmoid<S>(input_gate_row[i]);
    const Exp<S> decay(-rate.get(i).re() * r * span);
    return {r, in, decay.value, std::sqrt(-decay.less_one * (2 + decay.less_one))};
  }

  INLINE Step at(int i, std::false_type) const {
    const Made m = make(i);
    const S factor = start + (1 - start) * m.root;
    return {number<1>(m.a, S(0)), number<1>(factor * m.i * u_row[i], S(0))};
  }

  INLINE Real1 pull(int i, int, const Real1& g, const Real1& before, std::false_type) {
    const Made m = make(i);
    const S c = g.re(), input = u_row[i], bound = S(1 / kSlope);
    const S factor = start + (1 - start) * m.root;
    const S steep = 2 * m.root < bound ? bound : 2 * m.root;
    const S root_by_log = (start - 1) * 2 * m.a * m.a / steep;
    const S by_log = c * before.re() * m.a + c * m.i * input * root_by_log;
    const S by_rate = -by_log * m.r * span;
    grad_gate.put(i, {by_rate * rate.get(i).re() * (1 - m.r)});
    grad_input_gate.put(i, {c * factor * input * m.i * (1 - m.i)});
    grad_u.put(i, {c * factor * m.i});
    grad_dt.put(i, {-by_log * rate.get(i).re() * m.r});
    sum.add(i, {by_rate});
    return {m.a * c};
  }

  void clear() {
    for (Lanes<S, 1>* lanes : {&grad_gate, &grad_input_gate, &grad_u, &grad_dt}) lanes->clear();
  }
  void store(int64_t t) {
    grad_gate.store(d_gate + t * N, N, width, past_caches);
    grad_input_gate.store(d_input_gate + t * N, N, width, past_caches);
    grad_u.store(du + t * N, N, width, past_caches);
    if (ddt) ddt[t] = grad_dt.total(width);
  }
  void finish() { sum.store(d_rate, N, width); }
};

template <bool BACKWARD>
void run(const Job& job, const Operands& operands, ScalarType dtype) {
  by_wide_dtype(dtype, [&](auto s) { spread<Gates<decltype(s)>, BACKWARD>(job, operands); });
}

// What both passes read, in the precision of sums.
struct Given {
  Tensor gate, input_gate, u, rate;
  Optional dt, first;

  Given(const Tensor& gate_, const Tensor& input_gate_, const Tensor& u_, const Tensor& rate_, const Optional& dt_,
        const Optional& first_, ScalarType wide)
      : gate(dense(gate_, wide)),
        input_gate(dense(input_gate_, wide)),
        u(dense(u_, wide)),
        rate(dense(rate_, wide)),
        dt(dense(dt_, wide)),
        first(dense(first_, ScalarType::Bool)) {
    const Extent x(whole("u", u, {3}));
    const Expect expect(u);
    expect.shaped("gate", gate, sizes(u));
    expect.shaped("input_gate", input_gate, sizes(u));
    expect.shaped("rate", rate, {x.channels});
    expect.shaped("dt", dt, {x.batch, x.time});
    expect.shaped("first", first, {x.batch, x.time});
  }

  Operands operands() const {
    Operands o{};
    o.gate = gate.data_ptr();
    o.input_gate = input_gate.data_ptr();
    o.u = u.data_ptr();
    o.rate = rate.data_ptr();
    o.dt = data_or_null<void>(dt);
    o.first = data_or_null<bool>(first);
    o.width = block_width(u.size(0), u.size(2));
    return o;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> rglru_scan(
    Tensor gate, Tensor input_gate, Tensor u, Tensor rate, Optional dt, Optional first, Optional h0, Optional lengths,
    Optional reset) {
  const ScalarType dtype = u.scalar_type(), wide = state_dtype(dtype);
  const Given given(gate, input_gate, u, rate, dt, first, wide);
  const Inputs inputs(given.u, h0, lengths, reset, wide);
  Tensor out = fresh_like(given.u, wide), last = state_like(given.u, wide);
  Job job = inputs.job(given.u, false);
  job.out = out.data_ptr();
  job.last = last.data_ptr();
  run<false>(job, given.operands(), wide);
  return {dense(out, dtype), last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rglru_scan_backward(
    Tensor grad, Tensor grad_last, Tensor gate, Tensor input_gate, Tensor u, Tensor rate, Optional dt, Optional first,
    Tensor states, Optional h0, Optional lengths, Optional reset) {
  const ScalarType dtype = states.scalar_type(), wide = state_dtype(dtype);
  const Given given(gate, input_gate, u, rate, dt, first, wide);
  const Inputs inputs(given.u, h0, lengths, reset, wide);
  const Expect expect(given.u);
  expect.shaped("states", states, sizes(given.u));
  expect.shaped("grad", grad, sizes(given.u));
  expect.shaped("grad_last", grad_last, state_sizes(given.u));
  grad = dense(grad, wide);
  grad_last = dense(grad_last, wide);
  states = dense(states, wide);
  Tensor d_gate = fresh_like(states, wide), d_input_gate = fresh_like(states, wide), du = fresh_like(states, wide);
  Tensor dh0 = torch::stable::empty_like(grad_last), d_rate = torch::stable::empty_like(grad_last);
  Job job = inputs.job(states, false);
  job.states = states.data_ptr();
  job.grad = grad.data_ptr();
  job.first = grad_last.data_ptr();
  job.last = dh0.data_ptr();
  Operands operands = given.operands();
  operands.d_gate = d_gate.data_ptr();
  operands.d_input_gate = d_input_gate.data_ptr();
  operands.du = du.data_ptr();
  operands.d_rate = d_rate.data_ptr();
  Tensor ddt = torch::stable::new_empty(u, {0});
  if (dt) {
    ddt = partial_times(*given.dt, Extent(states), operands.width);
    operands.ddt = ddt.data_ptr();
  }
  run<true>(job, operands, wide);
  if (dt) ddt = dense(torch::stable::reshape(sum_first(ddt), sizes(*dt)), dt->scalar_type());
  d_rate = dense(torch::stable::reshape(sum_first(d_rate), sizes(rate)), rate.scalar_type());
  return {dense(d_gate, dtype), dense(d_input_gate, dtype), dense(du, dtype), d_rate, ddt, dh0};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("rglru_scan", TORCH_BOX(&lrnnx::cpu::rglru_scan));
  m.impl("rglru_scan_backward", TORCH_BOX(&lrnnx::cpu::rglru_scan_backward));
}
