// lrnnx::selective_scan on the CPU and its gradients: entries, and tiles of channels over threads.
//
// 2 sequences, 1 group of 80 channels, 3 tiles: 6 tasks, which threads take in runs.
//
//   task         0          1          2          3          4          5
//   sequence     0          0          0          1          1          1
//   channels     0 .. 31    32 .. 63   64 .. 79   0 .. 31    32 .. 63   64 .. 79       selective.h draws a tile
//
//   each task writes its own part of   dA, dD, dbias [sequence][channel]     dB, dC, ddt [tile][sequence][step]
//   and sum_first adds over sequences, or over tiles, in a fixed order
#include "run.h"
#include "selective.h"

namespace lrnnx::cpu {

namespace {

template <class S>
void run_selective(const Selective& p, int64_t planes, int64_t rule, bool backward) {
  const auto spread = [&](auto kind, auto planes_) {
    using Walk = Tile<S, decltype(planes_)::value, decltype(kind)::value>;
    const int64_t tiles = p.tiles(), tasks = p.batch * p.groups * tiles;
    const int64_t grain = kWorthThread / (p.time * p.states * kTile) + 1;
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) {
        Walk walk(p, task / (p.groups * tiles), task / tiles % p.groups, task % tiles);
        backward ? walk.backward() : walk.forward();
      }
    });
  };
  const auto with = [&](auto kind) {
    planes == 1 ? spread(kind, std::integral_constant<int, 1>{}) : spread(kind, std::integral_constant<int, 2>{});
  };
  by_rule(rule, with);
}

// The same for every batch element and step. A single step of a single element counts as one that varies.
bool constant(const Tensor& x, const Tensor& u) {
  return x.size(0) == 1 && x.size(1) == 1 && u.size(0) * u.size(1) != 1;
}

// What both passes read, in the precision of sums.
struct Given {
  Tensor u, delta, A, B, C;
  Optional D, z, bias, dt, h0, lengths, reset;

  Given(const Tensor& u_, const Tensor& delta_, const Tensor& A_, const Tensor& B_, const Tensor& C_,
        const Optional& D_, const Optional& z_, const Optional& bias_, const Optional& dt_, const Optional& h0_,
        const Optional& lengths_, const Optional& reset_, ScalarType wide)
      : u(dense(u_, wide)), delta(dense(delta_, wide)), A(dense(A_, wide)), B(dense(B_, wide)), C(dense(C_, wide)),
        D(dense(D_, wide)), z(dense(z_, wide)), bias(dense(bias_, wide)), dt(dense(dt_, wide)), h0(dense(h0_, wide)),
        lengths(dense(lengths_, ScalarType::Long)), reset(dense(reset_, ScalarType::Bool)) {}

  Selective problem(bool softplus) const {
    expect_selective(u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset);
    Selective p{};
    p.u = u.data_ptr();
    p.delta = delta.data_ptr();
    p.A = A.data_ptr();
    p.B = B.data_ptr();
    p.C = C.data_ptr();
    p.D = data_or_null<void>(D);
    p.z = data_or_null<void>(z);
    p.bias = data_or_null<void>(bias);
    p.dt = data_or_null<void>(dt);
    p.h0 = data_or_null<void>(h0);
    p.lengths = data_or_null<int64_t>(lengths);
    p.reset = data_or_null<bool>(reset);
    p.batch = u.size(0);
    p.time = u.size(1);
    p.channels = u.size(2);
    p.groups = B.size(2);
    p.states = A.size(A.dim() - 1);
    STD_TORCH_CHECK((constant(B, u) || (B.size(1) == p.time && B.size(0) == p.batch)) &&
                        (constant(C, u) || (C.size(1) == p.time && C.size(0) == p.batch)),
                    "B and C must vary along time and batch, or be constant");
    p.b_time = constant(B, u) ? 0 : B.stride(1);
    p.b_batch = constant(B, u) ? 0 : B.stride(0);
    p.c_time = constant(C, u) ? 0 : C.stride(1);
    p.c_batch = constant(C, u) ? 0 : C.stride(0);
    p.softplus = softplus;
    return p;
  }
};

void run(const Selective& p, const Tensor& A, ScalarType dtype, int64_t rule, bool backward) {
  by_wide_dtype(dtype, [&](auto s) { run_selective<decltype(s)>(p, A.dim() - 1, rule, backward); });
}

}  // namespace

std::tuple<Tensor, Tensor> selective_scan(
    Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias, Optional dt,
    Optional h0, Optional lengths, Optional reset, bool softplus, int64_t rule) {
  const ScalarType dtype = u.scalar_type(), wide = state_dtype(dtype);
  const Given given(u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, wide);
  Selective p = given.problem(softplus);
  std::vector<int64_t> shape = sizes(A);
  shape.insert(shape.begin(), p.batch);
  Tensor y = fresh_like(given.u, wide), last = torch::stable::new_empty(u, shape, wide);
  p.y = y.data_ptr();
  p.last = last.data_ptr();
  run(p, A, wide, rule, false);
  return {dense(y, dtype), last};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients selective_scan_backward(
    Tensor grad, Tensor grad_last, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z,
    Optional bias, Optional dt, Optional h0, Optional lengths, Optional reset, bool softplus, int64_t rule) {
  const ScalarType dtype = u.scalar_type(), wide = state_dtype(dtype);
  const Given given(u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, wide);
  Selective p = given.problem(softplus);
  expect_selective_gradients(grad, grad_last, u, A);
  grad = dense(grad, wide);
  grad_last = dense(grad_last, wide);
  const auto sums = [&](std::vector<int64_t> shape, int64_t rows) {
    shape.insert(shape.begin(), rows);
    return torch::stable::new_empty(u, shape, wide);
  };
  const auto none = [&] { return torch::stable::new_empty(u, {0}, wide); };  // outputs share no memory
  const auto weights = [&](const Tensor& x) {  // for each batch element also where they are the same for all
    std::vector<int64_t> shape = sizes(x);
    shape[0] = p.batch;
    return sums(shape, p.tiles());
  };
  Tensor du = fresh_like(given.u, wide), ddelta = fresh_like(given.u, wide), dz = z ? fresh_like(given.u, wide) : none();
  Tensor dA = sums(sizes(A), p.batch), dB = weights(B), dC = weights(C);
  Tensor dD = D ? sums({p.channels}, p.batch) : none(), dbias = bias ? sums({p.channels}, p.batch) : none();
  Tensor ddt = dt ? sums({p.batch, p.time}, p.groups * p.tiles()) : none(), dh0 = torch::stable::empty_like(grad_last);
  p.grad = grad.data_ptr();
  p.grad_last = grad_last.data_ptr();
  p.du = du.data_ptr();
  p.ddelta = ddelta.data_ptr();
  p.dA = dA.data_ptr();
  p.dB = dB.data_ptr();
  p.dC = dC.data_ptr();
  p.dh0 = dh0.data_ptr();
  if (z) p.dz = dz.data_ptr();
  if (D) p.dD = dD.data_ptr();
  if (bias) p.dbias = dbias.data_ptr();
  if (dt) p.ddt = ddt.data_ptr();
  run(p, A, wide, rule, true);
  const auto total = [](const Tensor& x, bool there) {
    return there ? torch::stable::select(sum_first(x), 0, 0) : x;
  };
  const auto total_weight = [&](const Tensor& part, const Tensor& x) {
    Tensor sum = torch::stable::select(sum_first(part), 0, 0);
    return dense(constant(x, u) ? sum_first(sum) : sum, x.scalar_type());
  };
  return {dense(du, dtype), dense(ddelta, delta.scalar_type()), total(dA, true), total_weight(dB, B),
          total_weight(dC, C), total(dD, bool(D)), z ? dense(dz, z->scalar_type()) : dz, total(dbias, bool(bias)),
          total(ddt, bool(dt)), dh0};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&lrnnx::cpu::selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&lrnnx::cpu::selective_scan_backward));
}
