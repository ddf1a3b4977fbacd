// lrnnx::linear_scan_backward on the CPU: gradients of a, b and h0 in one pass.
#include "dispatch.h"

namespace lrnnx::cpu {
namespace {

// Sums over the batch in a fixed order, so that results repeat bit for bit.
Tensor sum_batch(const Tensor& part, const Tensor& a, ScalarType dtype) {
  Tensor sum = a.size(0) == 1 ? torch::stable::sum(part, std::vector<int64_t>{0}, true) : part;
  return dense(torch::stable::unsqueeze(sum, 1), dtype);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> linear_scan_backward(
    Tensor grad, Tensor grad_last, Tensor a, Tensor states, Optional h0, Optional lengths, Optional reset,
    bool reverse) {
  const Extent x(states);
  const ScalarType dtype = states.scalar_type(), wide = state_dtype(dtype);
  const Coefficient coefficient(a, coefficient_dtype(a, states), x);
  grad = dense(grad, dtype);
  grad_last = dense(grad_last, wide);
  states = dense(states, dtype);
  h0 = dense(h0, wide);
  lengths = dense(lengths, ScalarType::Long);
  reset = dense(reset, ScalarType::Bool);
  const bool sum_a = a.size(1) == 1 && (x.time > 1 || a.size(0) == 1);
  STD_TORCH_CHECK(sum_a || a.size(0) == x.batch, "expand a along the batch first");
  Tensor db = torch::stable::empty_like(states), dh0 = torch::stable::empty_like(grad_last);
  Tensor da = sum_a ? torch::stable::empty_like(grad_last)
                    : torch::stable::empty_like(torch::stable::to(states, coefficient.tensor.scalar_type()));
  if (x.batch * x.channels > 0) {
    Job job{};
    job.a = coefficient.tensor.data_ptr();
    job.b = grad.data_ptr();
    job.states = states.data_ptr();
    job.h0 = data_or_null<void>(h0);
    job.last_grad = grad_last.data_ptr();
    job.lengths = data_or_null<int64_t>(lengths);
    job.reset = data_or_null<bool>(reset);
    job.out = db.data_ptr();
    job.last = dh0.data_ptr();
    job.da = da.data_ptr();
    job.time = x.time;
    job.channels = x.channels;
    job.a_batch = coefficient.batch_stride;
    job.a_time = coefficient.time_stride;
    job.reverse = reverse;
    job.sum_a = sum_a;
    by_dtype(coefficient.tensor.scalar_type(), dtype, [&](auto a_, auto e_, auto s_) {
      using A = decltype(a_);
      using E = decltype(e_);
      using S = decltype(s_);
      if (x.planes == 1)
        spread(job, x.batch, backward<A, E, S, 1, kBlock>, backward<A, E, S, 1, kBlock / 2>, backward<A, E, S, 1, 0>);
      else
        spread(job, x.batch, backward<A, E, S, 2, kBlock>, backward<A, E, S, 2, kBlock / 2>, backward<A, E, S, 2, 0>);
    });
  }
  return {sum_a ? sum_batch(da, a, a.scalar_type()) : dense(da, a.scalar_type()), db, dh0};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("linear_scan_backward", TORCH_BOX(&lrnnx::cpu::linear_scan_backward));
}
