// lrnnx::linear_scan and its backward on CUDA. The scan itself is scan.cuh.
#include "modes.cuh"
#include "reduce.cuh"

namespace lrnnx::cuda {
namespace {

void expect_scan(const Tensor& a, const Tensor& like, const Optional& h0, const Optional& lengths, const Optional& reset) {
  const Expect expect(like);
  expect.here("a", a);
  expect.shaped("h0", h0, state_sizes(like));
  expect.steps(lengths, reset);
  STD_TORCH_CHECK(a.dim() == like.dim(), "a must have as many dimensions as b");
}

}  // namespace

std::tuple<Tensor, Tensor> linear_scan(
    Tensor a, Tensor b, Optional h0, Optional lengths, Optional reset, bool reverse) {
  const Extent x(b);
  const torch::stable::accelerator::DeviceGuard guard(b.get_device_index());
  const ScalarType dtype = b.scalar_type(), wide = state_dtype(dtype);
  expect_scan(a, b, h0, lengths, reset);
  const bool constant = is_constant(a) && !lengths && !reset;
  const ScalarType stored = stored_dtype(a, b, constant);
  Tensor out = empty(b, sizes(b), stored), last = empty(b, state_sizes(b), wide);
  if (b.numel() > 0) {
    b = dense(b, stored);
    h0 = dense(h0, wide);
    const Coefficient coefficient(a, constant ? wide : stored, x);
    const Optional mode = modes(b, x, lengths, reset, reverse);
    Request request = prepare(x, b, coefficient, mode, constant, reverse);
    request.params.first = data_or_null<void>(h0);
    request.params.y = out.data_ptr();
    request.params.last = last.data_ptr();
    run<Kind::kLinear, false>(stored, request);
  }
  return {dense(out, dtype), last};
}

std::tuple<Tensor, Tensor, Tensor> linear_scan_backward(
    Tensor grad, Tensor grad_last, Tensor a, Tensor states, Optional h0, Optional lengths, Optional reset,
    bool reverse) {
  const Extent x(states);
  const torch::stable::accelerator::DeviceGuard guard(states.get_device_index());
  const ScalarType dtype = states.scalar_type(), wide = state_dtype(dtype);
  expect_scan(a, states, h0, lengths, reset);
  const Expect expect(states);
  expect.shaped("grad", grad, sizes(states));
  expect.shaped("grad_last", grad_last, state_sizes(states));
  const bool sum_a = is_constant(a), constant = sum_a && !lengths && !reset;
  STD_TORCH_CHECK(sum_a || a.size(0) == x.batch, "expand a along the batch first");
  const ScalarType stored = stored_dtype(a, states, constant);
  Tensor db = empty(states, sizes(states), stored), dh0 = empty(states, state_sizes(states), wide);
  if (states.numel() == 0) return {torch::stable::new_zeros(a, sizes(a)), dense(db, dtype), dh0};
  Tensor da = sum_a ? dh0 : empty(states, sizes(states), stored);
  grad = dense(grad, stored);
  grad_last = dense(grad_last, wide);
  states = dense(states, stored);
  h0 = dense(h0, wide);
  const Coefficient coefficient(a, constant ? wide : stored, x);
  const Optional mode = modes(states, x, lengths, reset, reverse);
  Request request = prepare(x, grad, coefficient, mode, constant, !reverse);
  Params& p = request.params;
  p.states = add_input(request, states);
  p.first = grad_last.data_ptr();
  p.h0 = data_or_null<void>(h0);
  p.y = db.data_ptr();
  p.da[0] = sum_a ? nullptr : da.data_ptr();
  p.last = dh0.data_ptr();
  p.sum_a = sum_a;
  const Optional part = run<Kind::kLinear, true>(stored, request);
  const int64_t time = 1;
  if (part) da = torch::stable::reshape(*std::get<0>(sum_first(part, std::nullopt, request.stream)), sizes(a));
  else if (a.size(1) != x.time) da = torch::stable::sum(da, {{&time, 1}}, true);
  return {dense(da, a.scalar_type()), dense(db, dtype), dh0};
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) {
  m.impl("linear_scan", TORCH_BOX(&lrnnx::cuda::linear_scan));
  m.impl("linear_scan_backward", TORCH_BOX(&lrnnx::cuda::linear_scan_backward));
}
