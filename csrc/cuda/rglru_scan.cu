// lrnnx::rglru_scan and its backward on CUDA: coefficients and drive are made in registers from the gates' logits.
//
// Many steps go through scan.cuh with the source `Gates`. A single step has a kernel of its own:
//
//   thread i    batch element b = i / N, channel n = i % N
//   registers   gate[b][n], input_gate[b][n], u[b][n], rate[n], dt[b], h[b][n]  ->  a, drive  ->  a·h + drive
//   global      y[b][n] and last[b][n] are both that number, in the dtypes of u and of states
#include "chained.cuh"
#include "gates.cuh"
#include "modes.cuh"
#include "reduce.cuh"

namespace lrnnx::cuda {
namespace {

// A single step, as streams take it: nothing to be read ahead, and no blocks that wait for each other.
struct Step {
  const void *gate, *input_gate, *u, *rate;
  const void *dt, *first, *unit;                          // (B,); the state; (B,) not 0: the input enters whole
  void *y, *last;
  int64_t gate_row, input_row;                            // strides of gate and input_gate
  int64_t count, N;
};

template <class E>
__global__ void __launch_bounds__(128) one_step(const Step p) {
  using S = typename Storage<E>::Sum;
  using X = Val<S, 1, 1>;
  await_launch_before();
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, b = i / p.N, n = i % p.N;
  if (i >= p.count) return;
  const auto number = [&](const void* x, int64_t row) { return static_cast<S>(static_cast<const E*>(x)[b * row + n]); };
  Gates<S, 1, 1, false> gates;
  gates.rate.v[0][0] = static_cast<const S*>(p.rate)[n];
  typename Gates<S, 1, 1, false>::In in{};
  in.raw[0].v[0][0] = number(p.gate, p.gate_row);
  in.raw[1].v[0][0] = number(p.input_gate, p.input_row);
  in.dt = p.dt ? static_cast<const S*>(p.dt)[b] : S(1);
  in.mode = p.unit && static_cast<const S*>(p.unit)[b] != 0 ? kUnit : kPlain;
  X u, h{};
  u.v[0][0] = number(p.u, p.N);
  if (p.first) h.v[0][0] = static_cast<const S*>(p.first)[i];
  const X a = gates.template at<false>(in), after = mad(a, h, gates.drive(in, a, u));
  static_cast<S*>(p.last)[i] = after.v[0][0];
  static_cast<E*>(p.y)[i] = static_cast<E>(after.v[0][0]);
}

Tensor rows_whole(const Tensor& x, ScalarType dtype) {
  return x.scalar_type() == dtype && (x.size(2) == 1 || x.stride(2) == 1) ? x : dense(x, dtype);
}

void start(ScalarType dtype, const Step& p, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((p.count + 127) / 128);
  by_dtype(dtype, [&](auto e) { start_chained(one_step<decltype(e)>, blocks, 128, stream, p); });
}

void expect_gates(const Tensor& u, const Tensor& gate, const Tensor& input_gate, const Tensor& rate, const Optional& dt,
                  const Optional& first, const Optional& h0, const Optional& lengths, const Optional& reset) {
  const Expect expect(u);
  expect.shaped("gate", gate, sizes(u));
  expect.shaped("input_gate", input_gate, sizes(u));
  expect.shaped("rate", rate, {u.size(2)});
  expect.shaped("dt", dt, {u.size(0), u.size(1)});
  expect.shaped("first", first, {u.size(0), u.size(1)});
  expect.shaped("h0", h0, state_sizes(u));
  expect.steps(lengths, reset);
}

}  // namespace

std::tuple<Tensor, Tensor> rglru_scan(
    Tensor gate, Tensor input_gate, Tensor u, Tensor rate, Optional dt, Optional first, Optional h0, Optional lengths,
    Optional reset) {
  const Extent x(whole("u", u, {3}));
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  const ScalarType dtype = u.scalar_type(), wide = state_dtype(dtype);
  expect_gates(u, gate, input_gate, rate, dt, first, h0, lengths, reset);
  Tensor out = empty(u, sizes(u), dtype), last = empty(u, state_sizes(u), wide);
  if (u.numel() == 0) return {out, last};
  u = dense(u, dtype);
  dt = dense(dt, wide);
  h0 = dense(h0, wide);
  const Coefficient rates = channels(rate, x, wide);
  if (x.time == 1 && !lengths && !reset) {
    const Optional unit = dense(first, wide);
    gate = rows_whole(gate, dtype);
    input_gate = rows_whole(input_gate, dtype);
    start(dtype,
          {gate.data_ptr(), input_gate.data_ptr(), u.data_ptr(), rates.tensor.data_ptr(), data_or_null<void>(dt),
           data_or_null<void>(h0), data_or_null<void>(unit), out.data_ptr(), last.data_ptr(), gate.stride(0),
           input_gate.stride(0), u.numel(), x.channels},
          current_stream(u));
    return {out, last};
  }
  gate = dense(gate, dtype);
  input_gate = dense(input_gate, dtype);
  const Optional mode = modes(u, x, lengths, reset, false, first);
  Request request = prepare(x, u, rates, mode, true, false);
  request.masked = lengths || reset;
  Params& p = request.params;
  p.extra[0] = add_input(request, gate);
  p.extra[1] = add_input(request, input_gate);
  p.dt = data_or_null<void>(dt);
  p.first = data_or_null<void>(h0);
  p.y = out.data_ptr();
  p.last = last.data_ptr();
  run<Kind::kGates, false>(dtype, request);
  return {out, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rglru_scan_backward(
    Tensor grad, Tensor grad_last, Tensor gate, Tensor input_gate, Tensor u, Tensor rate, Optional dt, Optional first,
    Tensor states, Optional h0, Optional lengths, Optional reset) {
  const Extent x(whole("u", u, {3}));
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  const ScalarType dtype = u.scalar_type(), wide = state_dtype(dtype);
  expect_gates(u, gate, input_gate, rate, dt, first, h0, lengths, reset);
  const Expect expect(u);
  expect.shaped("states", states, sizes(u));
  expect.shaped("grad", grad, sizes(u));
  expect.shaped("grad_last", grad_last, state_sizes(u));
  Tensor d_gate = empty(u, sizes(u), dtype), d_input = empty(u, sizes(u), dtype), du = empty(u, sizes(u), dtype);
  Tensor dh0 = empty(u, state_sizes(u), wide);
  Tensor ddt = dt ? torch::stable::new_zeros(*dt, sizes(*dt)) : empty(u, {0}, dtype);
  if (u.numel() == 0) return {d_gate, d_input, du, torch::stable::new_zeros(rate, sizes(rate)), ddt, dh0};
  const Optional steps = dense(dt, wide);
  grad = dense(grad, dtype);
  grad_last = dense(grad_last, wide);
  gate = dense(gate, dtype);
  input_gate = dense(input_gate, dtype);
  u = dense(u, dtype);
  states = dense(states, dtype);
  h0 = dense(h0, wide);
  const Coefficient rates = channels(rate, x, wide);
  const Optional mode = modes(u, x, lengths, reset, false, first);
  Request request = prepare(x, grad, rates, mode, true, true);
  request.masked = lengths || reset;
  Params& p = request.params;
  p.extra[0] = add_input(request, gate);
  p.extra[1] = add_input(request, input_gate);
  p.extra[2] = add_input(request, u);
  p.states = add_input(request, states);
  p.dt = data_or_null<void>(steps);
  p.first = grad_last.data_ptr();
  p.h0 = data_or_null<void>(h0);
  p.y = du.data_ptr();
  p.da[0] = d_gate.data_ptr();
  p.da[1] = d_input.data_ptr();
  p.last = dh0.data_ptr();
  p.sum_a = true;
  const Optional part = run<Kind::kGates, true>(dtype, request);
  const auto [d_rate, of_time] = sum_first(part, request.part_dt, request.stream);
  if (dt) ddt = dense(*of_time, dt->scalar_type());
  return {d_gate, d_input, du, dense(torch::stable::reshape(*d_rate, sizes(rate)), rate.scalar_type()), ddt, dh0};
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) {
  m.impl("rglru_scan", TORCH_BOX(&lrnnx::cuda::rglru_scan));
  m.impl("rglru_scan_backward", TORCH_BOX(&lrnnx::cuda::rglru_scan_backward));
}
