// lrnnx::discretized_scan and its backward on CUDA: coefficients and gains are made in registers.
#include "modes.cuh"
#include "reduce.cuh"

namespace lrnnx::cuda {
namespace {

void expect_rates(const Tensor& like, const Extent& x, const Tensor& z, const Tensor& dt, const Optional& h0,
                  const Optional& lengths, const Optional& reset, int64_t rule) {
  const Expect expect(like);
  expect.shaped("z", z, {x.planes, x.channels});
  expect.shaped("dt", dt, {x.batch, x.time});
  expect.shaped("h0", h0, state_sizes(like));
  expect.steps(lengths, reset);
  STD_TORCH_CHECK(rule >= 0 && rule < kRules, "there are no kernels for rule ", rule);
  STD_TORCH_CHECK(!rules::is<rules::Split>(rule), "a rule of two spans has none of its own in this scan");
}

}  // namespace

std::tuple<Tensor, Tensor> discretized_scan(
    Tensor z, Tensor dt, Tensor v, Optional h0, Optional lengths, Optional reset, bool reverse, int64_t rule) {
  const Extent x(whole("v", v, {4}));
  const torch::stable::accelerator::DeviceGuard guard(v.get_device_index());
  const ScalarType dtype = v.scalar_type(), wide = state_dtype(dtype);
  expect_rates(v, x, z, dt, h0, lengths, reset, rule);
  Tensor out = empty(v, sizes(v), dtype), last = empty(v, state_sizes(v), wide);
  if (v.numel() == 0) return {out, last};
  v = dense(v, dtype);
  dt = dense(dt, wide);
  h0 = dense(h0, wide);
  const Coefficient rates = channels(z, x, wide);
  const Optional mode = modes(v, x, lengths, reset, reverse);
  Request request = prepare(x, v, rates, mode, true, reverse);
  Params& p = request.params;
  p.rule = static_cast<int>(rule);
  p.dt = dt.data_ptr();
  p.first = data_or_null<void>(h0);
  p.y = out.data_ptr();
  p.last = last.data_ptr();
  run<Kind::kDiscretized, false>(dtype, request);
  return {out, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> discretized_scan_backward(
    Tensor grad, Tensor grad_last, Tensor z, Tensor dt, Optional v, Tensor states, Optional h0, Optional lengths,
    Optional reset, bool reverse, int64_t rule) {
  const Extent x(whole("states", states, {4}));
  const torch::stable::accelerator::DeviceGuard guard(states.get_device_index());
  const ScalarType dtype = states.scalar_type(), wide = state_dtype(dtype);
  expect_rates(states, x, z, dt, h0, lengths, reset, rule);
  const Expect expect(states);
  expect.shaped("v", v, sizes(states));
  expect.shaped("grad", grad, sizes(states));
  expect.shaped("grad_last", grad_last, state_sizes(states));
  STD_TORCH_CHECK(v || rules::is<rules::Impulse>(rule), "this rule's gradients need v");
  Tensor dv = empty(states, sizes(states), dtype), dh0 = empty(states, state_sizes(states), wide);
  if (states.numel() == 0)
    return {torch::stable::new_zeros(z, sizes(z)), torch::stable::new_zeros(dt, sizes(dt)), dv, dh0};
  const Tensor steps = dense(dt, wide);
  grad = dense(grad, dtype);
  grad_last = dense(grad_last, wide);
  states = dense(states, dtype);
  v = v ? dense(v, dtype) : Optional(states);  // a gain of 1 has no use for it
  h0 = dense(h0, wide);
  const Coefficient rates = channels(z, x, wide);
  const Optional mode = modes(states, x, lengths, reset, reverse);
  Request request = prepare(x, grad, rates, mode, true, !reverse);
  Params& p = request.params;
  p.rule = static_cast<int>(rule);
  p.dt = steps.data_ptr();
  p.states = add_input(request, states);
  p.extra[0] = add_input(request, *v);
  p.first = grad_last.data_ptr();
  p.h0 = data_or_null<void>(h0);
  p.y = dv.data_ptr();
  p.last = dh0.data_ptr();
  p.sum_a = true;
  const Optional part = run<Kind::kDiscretized, true>(dtype, request);
  const auto [dz, ddt] = sum_first(part, request.part_dt, request.stream);
  return {dense(torch::stable::reshape(*dz, sizes(z)), z.scalar_type()), dense(*ddt, dt.scalar_type()), dv, dh0};
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) {
  m.impl("discretized_scan", TORCH_BOX(&lrnnx::cuda::discretized_scan));
  m.impl("discretized_scan_backward", TORCH_BOX(&lrnnx::cuda::discretized_scan_backward));
}
