// lrnnx::linear_scan on the CPU.
#include "dispatch.h"

namespace lrnnx::cpu {

std::tuple<Tensor, Tensor> linear_scan(
    Tensor a, Tensor b, Optional h0, Optional lengths, Optional reset, bool reverse) {
  const Extent x(b);
  const ScalarType dtype = b.scalar_type(), wide = state_dtype(dtype);
  const Coefficient coefficient(a, coefficient_dtype(a, b), x);
  b = dense(b, dtype);
  h0 = dense(h0, wide);
  lengths = dense(lengths, ScalarType::Long);
  reset = dense(reset, ScalarType::Bool);
  Tensor out = torch::stable::empty_like(b), last = torch::stable::empty_like(
      torch::stable::to(torch::stable::select(b, 1, 0), wide));
  if (x.batch * x.channels == 0) return {out, last};
  Job job{};
  job.a = coefficient.tensor.data_ptr();
  job.b = b.data_ptr();
  job.h0 = data_or_null<void>(h0);
  job.lengths = data_or_null<int64_t>(lengths);
  job.reset = data_or_null<bool>(reset);
  job.out = out.data_ptr();
  job.last = last.data_ptr();
  job.time = x.time;
  job.channels = x.channels;
  job.a_batch = coefficient.batch_stride;
  job.a_time = coefficient.time_stride;
  job.reverse = reverse;
  by_dtype(coefficient.tensor.scalar_type(), dtype, [&](auto a_, auto e_, auto s_) {
    using A = decltype(a_);
    using E = decltype(e_);
    using S = decltype(s_);
    if (x.planes == 1)
      spread(job, x.batch, forward<A, E, S, 1, kBlock>, forward<A, E, S, 1, kBlock / 2>, forward<A, E, S, 1, 0>);
    else
      spread(job, x.batch, forward<A, E, S, 2, kBlock>, forward<A, E, S, 2, kBlock / 2>, forward<A, E, S, 2, 0>);
  });
  return {out, last};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("linear_scan", TORCH_BOX(&lrnnx::cpu::linear_scan));
}
