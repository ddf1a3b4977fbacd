// lrnnx::selective_scan_kernel and its backward on CUDA: what the kernels need, and in which order they run.
#include "selective_launch.h"

namespace lrnnx::cuda {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kLongest = int64_t(1) << 26;  // bytes between steps: kernels count those of 32 steps in 31 bits

// The same for every batch element and step. A single step of a single element counts as one that varies.
bool constant(const Tensor& x, const Tensor& u) {
  return x.size(0) == 1 && x.size(1) == 1 && u.size(0) * u.size(1) != 1;
}

// x itself if its last `inner` dimensions are contiguous and it has the dtype; else a contiguous copy.
Tensor rows_whole(const Tensor& x, ScalarType dtype, int64_t inner) {
  bool whole = x.scalar_type() == dtype;
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= x.dim() - inner; d--) {
    whole &= x.size(d) == 1 || x.stride(d) == expected;
    expected *= x.size(d);
  }
  whole &= x.size(1) == 1 || x.stride(1) > 0;  // 0 says that all steps are the same
  whole &= x.stride(0) >= 0 && x.stride(1) * x.element_size() < kLongest;
  return whole ? x : dense(x, dtype);
}

struct Problem {
  Tensor u, delta, A, B, C;
  Optional D, z, bias, dt, first, lengths, reset;
  static constexpr ScalarType wide = ScalarType::Float;
  ScalarType dtype;
  int planes;
  cudaStream_t stream;
  Selective p{};
  std::vector<Tensor> scratch_memory;

  Problem(const Tensor& u_, const Tensor& delta_, const Tensor& A_, const Tensor& B_, const Tensor& C_,
          const Optional& D_, const Optional& z_, const Optional& bias_, const Optional& dt_, const Optional& h0_,
          const Optional& lengths_, const Optional& reset_, bool softplus)
      : u(rows_whole(u_, u_.scalar_type(), 1)),
        delta(rows_whole(delta_, u.scalar_type(), 1)),
        A(dense(A_, wide)),
        B(weights(B_)),
        C(weights(C_)),
        D(dense(D_, wide)),
        z(z_ ? Optional(rows_whole(*z_, u.scalar_type(), 1)) : std::nullopt),
        bias(dense(bias_, wide)),
        dt(dense(dt_, wide)),
        first(dense(h0_, wide)),
        lengths(dense(lengths_, ScalarType::Long)),
        reset(dense(reset_, ScalarType::Bool)),
        dtype(u.scalar_type()),
        planes(static_cast<int>(A.dim() - 1)),
        stream(current_stream(u)) {
    expect_selective(u, delta, A, B, C, D, z, bias, dt, first, lengths, reset);
    const int64_t row = std::max(u.size(2), B.size(2) * planes * B.size(B.dim() - 1)) * int64_t(sizeof(float));
    STD_TORCH_CHECK(u.size(0) < 65536 && u.size(1) < (int64_t(1) << 30) && row < kLongest, "extent too large");
    p.batch = static_cast<int>(u.size(0));
    p.time = static_cast<int>(u.size(1));
    p.channels = static_cast<int>(u.size(2));
    p.groups = static_cast<int>(B.size(2));
    p.states = static_cast<int>(A.size(A.dim() - 1));
    STD_TORCH_CHECK(p.states <= 256, "selective_scan takes 256 states a channel at most");
    p.slices = (p.states * planes + kSlice - 1) / kSlice;
    p.share = p.channels / p.groups;
    p.padded = p.groups * tiles_of(p, kBlockOf) * kBlockOf;
    p.softplus = softplus;
    p.A = static_cast<const float*>(A.data_ptr());
    p.D = data_or_null<float>(D);
    p.bias = data_or_null<float>(bias);
    p.dt = data_or_null<float>(dt);
    p.first = data_or_null<float>(first);
    p.lengths = data_or_null<int64_t>(lengths);
    p.reset = data_or_null<bool>(reset);
    p.pairs = p.share % 2 == 0;
    p.vectors = p.share % (16 / u.element_size()) == 0;
    p.u = elements(u);
    p.delta = elements(delta);
    if (z) p.z = elements(*z);
    p.quads = planes == 1 && p.states % 4 == 0;
    p.B = along(B);
    p.C = along(C);
  }

  // Constant projections have strides of 0; others must have one for each step.
  Tensor weights(const Tensor& x) const {
    STD_TORCH_CHECK(constant(x, u) || (x.size(0) == u.size(0) && x.size(1) == u.size(1)),
                    "B and C must vary along time and batch, or be constant");
    return rows_whole(x, u.scalar_type(), x.dim() - 2);
  }
  Along along(const Tensor& x) {
    const bool same = constant(x, u);
    const Along r = same ? Along{static_cast<const char*>(x.data_ptr()), 0, 0} : along_time(x);
    p.quads &= whole(r, 4 * x.element_size());
    return r;
  }
  static Along along_time(const Tensor& x) {  // of a single step, any stride but 0 will do
    const int64_t size = x.element_size(), time = x.size(1) == 1 ? 16 : size * x.stride(1);
    return {static_cast<const char*>(x.data_ptr()), size * x.stride(0), static_cast<int>(time)};
  }
  // Whether `bytes` can be read in one access: all addresses are multiples of it.
  static bool whole(const Along& r, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(r.data) % bytes == 0 && r.batch % bytes == 0 && r.time % bytes == 0;
  }
  Along elements(const Tensor& x) {
    const Along r = along_time(x);
    p.pairs &= whole(r, 2 * x.element_size());
    p.vectors &= whole(r, 16);
    return r;
  }

  // Shape of the states kept for the backward pass.
  std::vector<int64_t> kept() const {
    return {p.batch, (p.time + kStepsKept - 1) / kStepsKept, p.slices * kSlice, p.padded};
  }
  float* scratch(int64_t count) {
    scratch_memory.push_back(empty(u, {count}, wide));
    return static_cast<float*>(scratch_memory.back().data_ptr());
  }
  // Chooses the number of segments with the least estimated time. The main walk has `blocks` blocks for each segment,
  // and a multiprocessor runs `at_once` of them, so they take some rounds, each as long as a segment. The walk before
  // it has one segment less and takes `before` times as long. Each segment costs 16 steps more.
  void cut(int64_t blocks, int at_once, double before) {
    const int64_t slots = int64_t(attribute(cudaDevAttrMultiProcessorCount)) * at_once;
    const auto rounds = [&](int64_t segments) { return double((blocks * segments + slots - 1) / slots); };
    double best = 0;
    int64_t pick = 0;
    for (int64_t s = 1; s <= 64 && s * 128 <= std::max<int64_t>(128, p.time); s++) {
      const double cost = (rounds(s) + before * rounds(s - 1)) * double((p.time + s - 1) / s) + 16. * double(s);
      if (pick && cost >= best) continue;
      best = cost;
      pick = s;
    }
    p.length = static_cast<int>(((p.time + pick - 1) / pick + 31) / 32 * 32);
    p.segments = (p.time + p.length - 1) / p.length;
    if (p.segments > 1) p.ahead = scratch(2 * state());
  }
  // Numbers of all segments' states.
  int64_t state() const { return int64_t(p.batch) * p.segments * p.slices * kSlice * p.padded; }

  // walk(element type, planes), both as types
  template <class F>
  void with(const F& walk) const {
    const auto by_planes = [&](auto e) {
      planes == 1 ? walk(e, std::integral_constant<int, 1>{}) : walk(e, std::integral_constant<int, 2>{});
    };
    if (dtype == ScalarType::Float) return by_planes(float{});
    if (dtype == ScalarType::Half) return by_planes(__half{});
    if (dtype == ScalarType::BFloat16) return by_planes(__nv_bfloat16{});
    STD_TORCH_CHECK(false, "selective_scan's kernels take float32, bfloat16 and float16");
  }
  int rule(int64_t given) const { return p.dt ? static_cast<int>(given) : rules::evenly(static_cast<int>(given)); }
};

}  // namespace

// With `keep` it also returns the state before every 8th step, from which the backward pass starts.
std::tuple<Tensor, Tensor, Tensor> selective_scan(
    Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional z, Optional bias, Optional dt,
    Optional h0, Optional lengths, Optional reset, bool softplus, int64_t rule, bool keep) {
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  Problem problem(u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, softplus);
  Selective& p = problem.p;
  std::vector<int64_t> shape = sizes(A);
  shape.insert(shape.begin(), p.batch);
  Tensor y = empty(u, sizes(u), problem.dtype), last = empty(u, shape, problem.wide);
  Tensor kept = empty(u, keep ? problem.kept() : std::vector<int64_t>{0}, problem.wide);
  if (last.numel() == 0) return {y, last, kept};
  p.y = y.data_ptr();
  p.last = static_cast<float*>(last.data_ptr());
  problem.cut(int64_t(p.groups) * tiles_of(p, 32) * p.batch, 4, .7);
  if (p.slices > 1) p.carry = problem.scratch(problem.state());
  problem.with([&](auto e, auto planes) {
    using E = decltype(e);
    constexpr int PL = decltype(planes)::value;
    if (p.segments > 1) walk_states<E, PL>(p, problem.rule(rule), problem.stream);
    if (keep) p.saved = static_cast<float*>(kept.data_ptr());
    walk_output<E, PL>(p, problem.rule(rule), problem.stream);
  });
  return {y, last, kept};
}

// If `kept` is empty, the states are computed again.
Gradients selective_scan_backward(
    Tensor grad, Tensor grad_last, Tensor kept, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D,
    Optional z, Optional bias, Optional dt, Optional h0, Optional lengths, Optional reset, bool softplus, int64_t rule) {
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  Problem problem(u, delta, A, B, C, D, z, bias, dt, h0, lengths, reset, softplus);
  Selective& p = problem.p;
  const ScalarType dtype = problem.dtype, wide = problem.wide;
  expect_selective_gradients(grad, grad_last, u, A);
  STD_TORCH_CHECK(kept.numel() == 0 || (sizes(kept) == problem.kept() && kept.scalar_type() == wide && kept.is_contiguous()),
                  "kept is not what the forward pass kept");
  grad = rows_whole(grad, dtype, 1);
  grad_last = dense(grad_last, wide);
  p.grad = problem.elements(grad);
  p.grad_last = static_cast<const float*>(grad_last.data_ptr());
  const auto none = [&] { return empty(u, {0}, wide); };  // outputs share no memory
  const auto summed = [&](const Tensor& x, ScalarType type) {  // of no elements at all, a sum is 0
    return grad_last.numel() ? empty(u, sizes(x), type) : torch::stable::new_zeros(u, sizes(x), type);
  };
  Tensor du = empty(u, sizes(u), dtype), ddelta = empty(u, sizes(u), dtype), dz = z ? empty(u, sizes(u), dtype) : none();
  Tensor dA = summed(A, wide), dB = summed(B, dtype), dC = summed(C, dtype);
  Tensor dD = D ? summed(*D, wide) : none(), dbias = bias ? summed(*bias, wide) : none();
  Tensor ddt = dt ? empty(u, sizes(*dt), wide) : none(), dfirst = empty(u, sizes(grad_last), wide);
  const auto data = [](const Tensor& x) { return x.numel() ? static_cast<float*>(x.data_ptr()) : nullptr; };
  p.du = du.data_ptr();
  p.ddelta = ddelta.data_ptr();
  p.dz = dz.data_ptr();
  p.dB = dB.data_ptr();
  p.dC = dC.data_ptr();
  p.dA = data(dA);
  p.dD = data(dD);
  p.dbias = data(dbias);
  p.ddt = data(ddt);
  p.dfirst = data(dfirst);
  if (grad_last.numel()) {
    const int64_t blocks = int64_t(p.groups) * tiles_of(p, kBlockOf), width = int64_t(p.slices) * kSlice;
    problem.cut(blocks * p.batch, 2, .5);
    const int64_t sequences = int64_t(p.batch) * p.segments;
    const auto rows = [&](const Along& x) { return x.time ? p.batch * int64_t(p.time) : sequences * kStepsKept; };
    p.part_B = problem.scratch(blocks * rows(p.B) * width);
    p.part_C = problem.scratch(blocks * rows(p.C) * width);
    p.part_channel = problem.scratch(sequences * (width + 2) * p.padded);
    if (p.slices > 1) p.carry = problem.scratch(problem.state());
    if (p.dt) p.part_dt = problem.scratch(blocks * p.batch * p.time);
    if (p.segments > 1) p.behind = problem.scratch(2 * problem.state());
    const bool again = kept.numel() == 0;
    if (again) kept = empty(u, problem.kept(), wide);
    float* const saved = static_cast<float*>(kept.data_ptr());
    problem.with([&](auto e, auto planes) {
      using E = decltype(e);
      constexpr int PL = decltype(planes)::value;
      const int which = problem.rule(rule);
      if (again && p.segments > 1) walk_states<E, PL>(p, which, problem.stream);
      p.saved = saved;
      if (again) walk_states<E, PL>(p, which, problem.stream);
      walk_reverse<E, PL>(p, which, problem.stream);
      walk_back<E, PL>(p, which, problem.stream);
    });
  }
  return {du, dense(ddelta, delta.scalar_type()), dA, dense(dB, B.scalar_type()), dense(dC, C.scalar_type()), dD,
          z ? dense(dz, z->scalar_type()) : dz, dbias, ddt, dfirst};
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) {
  m.impl("selective_scan_kernel", TORCH_BOX(&lrnnx::cuda::selective_scan));
  m.impl("selective_scan_kernel_backward", TORCH_BOX(&lrnnx::cuda::selective_scan_backward));
}
