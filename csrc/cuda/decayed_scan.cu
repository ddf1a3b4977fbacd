// lrnnx::decayed_scan and its backward on CUDA: coefficients exp(z dt) are made in registers.
#include "reduce.cuh"

namespace lrnnx::cuda {
namespace {

// Rates take the place of constant coefficients: (P, N), in the precision of sums.
Coefficient rates(const Tensor& z, const Extent& x, ScalarType wide) {
  STD_TORCH_CHECK(x.planes == 2, "decayed_scan takes complex inputs (B, T, 2, N)");
  return Coefficient(torch::stable::reshape(dense(z, wide), {1, 1, x.row()}), wide, x);
}

}  // namespace

std::tuple<Tensor, Tensor> decayed_scan(
    Tensor z, Tensor dt, Tensor b, Optional h0, Optional lengths, Optional reset, bool reverse) {
  const Extent x(b);
  const torch::stable::accelerator::DeviceGuard guard(b.get_device_index());
  const ScalarType dtype = b.scalar_type(), wide = state_dtype(dtype);
  Tensor out = empty(b, sizes(b), dtype), last = empty(b, state_sizes(b), wide);
  if (b.numel() == 0) return {out, last};
  b = dense(b, dtype);
  dt = dense(dt, wide);
  h0 = dense(h0, wide);
  const Coefficient rate = rates(z, x, wide);
  const Optional mode = modes(b, x, lengths, reset, reverse);
  Request request = prepare(x, b, rate, mode, true, reverse);
  request.params.dt = dt.data_ptr();
  request.params.first = data_or_null<void>(h0);
  request.params.y = out.data_ptr();
  request.params.last = last.data_ptr();
  run_as<false>(dtype, request, true);
  return {out, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> decayed_scan_backward(
    Tensor grad, Tensor grad_last, Tensor z, Tensor dt, Tensor states, Optional h0, Optional lengths, Optional reset,
    bool reverse) {
  const Extent x(states);
  const torch::stable::accelerator::DeviceGuard guard(states.get_device_index());
  const ScalarType dtype = states.scalar_type(), wide = state_dtype(dtype);
  Tensor db = empty(states, sizes(states), dtype), dh0 = empty(states, state_sizes(states), wide);
  if (states.numel() == 0)
    return {torch::stable::new_zeros(z, sizes(z)), torch::stable::new_zeros(dt, sizes(dt)), db, dh0};
  const Tensor steps = dense(dt, wide);
  grad = dense(grad, dtype);
  grad_last = dense(grad_last, wide);
  states = dense(states, dtype);
  h0 = dense(h0, wide);
  const Coefficient rate = rates(z, x, wide);
  const Optional mode = modes(states, x, lengths, reset, reverse);
  Request request = prepare(x, grad, rate, mode, true, !reverse);
  Params& p = request.params;
  p.dt = steps.data_ptr();
  p.states = states.data_ptr();
  p.aligned &= row_aligned(p.states, x.channels, states.element_size());
  p.first = grad_last.data_ptr();
  p.h0 = data_or_null<void>(h0);
  p.y = db.data_ptr();
  p.last = dh0.data_ptr();
  p.sum_a = true;
  const Optional part = run_as<true>(dtype, request, true);
  const auto [dz, ddt] = sum_first(part, request.part_dt, request.stream);
  return {dense(torch::stable::reshape(*dz, sizes(z)), z.scalar_type()), dense(*ddt, dt.scalar_type()), db, dh0};
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) {
  m.impl("decayed_scan", TORCH_BOX(&lrnnx::cuda::decayed_scan));
  m.impl("decayed_scan_backward", TORCH_BOX(&lrnnx::cuda::decayed_scan_backward));
}
