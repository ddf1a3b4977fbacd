// lrnnx::linear_scan on the CPU, and its gradients of a, b and h0 in one pass. walk.h draws the walk over time.
//
//   memory      a (B or 1, T or 1, P, N)      b (B, T, P, N)       out
//   step 0      | a0 a1 a2 a3 |               | b0 b1 b2 b3 |      | h0 h1 h2 h3 |      a task: one batch element
//   step 1      | ..          |               | ..          |                          and a block of channels
//               a_time is 0 where a is the same at all steps: the row stays
//
//   backward    db[t] = g      da[t] = conj(h[t − 1])·g      g before = conj(a[t])·g
//               da: a row for each step; or, where a is the same at all steps, da_sum: one row for each batch element
#include "run.h"

namespace lrnnx::cpu {
namespace {

struct Operands {
  const void *a, *b;
  void *da, *db, *da_sum;
  int64_t a_batch, a_time;  // strides of a
};

// Coefficients a and inputs b as they lie in memory; backward, gradients da (or its sums over time) and db.
template <class A, class E, class S, int P>
struct Given {
  using Value = E;
  using Sum = S;
  static constexpr int PLANES = P;
  static constexpr bool TURNS = false;
  static constexpr bool distant() { return false; }
  struct Step {
    Number<S, P> a, b;
  };

  const A *a, *a_row = nullptr;
  const E *b, *b_row = nullptr;
  A* da;
  E* db;
  S* da_sum;  // instead of da where it is not null
  int64_t a_time, N;
  int width;
  bool past_caches;
  Lanes<S, P> grad_a, grad_b, sum;

  Given(const Job& job, const Block& at, const Operands& o)
      : a(at_channel<A>(o.a, at.batch, o.a_batch, at.first)),
        b(at_channel<E>(o.b, at.batch * job.time, P * job.channels, at.first)),
        da(at_channel<A>(o.da, at.batch * job.time, P * job.channels, at.first)),
        db(at_channel<E>(o.db, at.batch * job.time, P * job.channels, at.first)),
        da_sum(at_channel<S>(o.da_sum, at.batch, P * job.channels, at.first)),
        a_time(o.a_time),
        N(job.channels),
        width(at.width),
        past_caches(job.past_caches) {}

  void seek(int64_t t) {
    a_row = a + t * a_time;
    b_row = b + t * P * N;
  }
  void foresee(int64_t t) const {
    cpu::foresee<P>(a + t * a_time, N, width);
    if (b) cpu::foresee<P>(b + t * P * N, N, width);
  }
  INLINE Step at(int i, std::false_type) const { return {read<S, P>(a_row, N, i), read<S, P>(b_row, N, i)}; }

  INLINE Number<S, P> pull(int i, int, const Number<S, P>& g, const Number<S, P>& before, std::false_type) {
    grad_b.put(i, g);
    grad_a.put(i, conj(before) * g);
    return conj(read<S, P>(a_row, N, i)) * g;
  }
  void clear() {
    grad_a.clear();
    grad_b.clear();
  }
  void store(int64_t t) {
    grad_b.store(db + t * P * N, N, width, past_caches);
    if (da_sum)
      each(width, [&](int i, int) { sum.add(i, grad_a.get(i)); });
    else
      grad_a.store(da + t * P * N, N, width, past_caches && std::is_same_v<A, E>);
  }
  void finish() {
    if (da_sum) sum.store(da_sum, N, width);
  }
};

// One real coefficient for all neighbours of a group of channels, at each step: nothing but a number to read. A block
// lies within a group, and sums its own part of the gradient.
//
//   b      | 0 1 2 3 | 4 5 6 7 |    2 groups of 4 channels
//   a      |    0    |    1    |
template <class A, class E, class S>
struct Shared {
  using Value = E;
  using Sum = S;
  static constexpr int PLANES = 1;
  static constexpr bool TURNS = false;
  static constexpr bool distant() { return false; }
  struct Step {
    Number<S, 1> a, b;
  };

  const A* a;
  const E *b, *b_row = nullptr;
  E* db;
  S* da;  // (blocks of a group, B, T, groups)
  S now = 0;
  int64_t a_time, N, groups;
  int width;
  bool past_caches;
  Lanes<S, 1> grad_a, grad_b;

  Shared(const Job& job, const Block& at, const Operands& o, int64_t groups_, int64_t part)
      : a(at_channel<A>(o.a, at.batch, o.a_batch, at.first / (job.channels / groups_))),
        b(at_channel<E>(o.b, at.batch * job.time, job.channels, at.first)),
        db(at_channel<E>(o.db, at.batch * job.time, job.channels, at.first)),
        da(at_channel<S>(o.da_sum, (part * job.batch + at.batch) * job.time, groups_,
                         at.first / (job.channels / groups_))),
        a_time(o.a_time),
        N(job.channels),
        groups(groups_),
        width(at.width),
        past_caches(job.past_caches) {}

  void seek(int64_t t) {
    now = static_cast<S>(a[t * a_time]);
    b_row = b + t * N;
  }
  void foresee(int64_t t) const {
    if (b) cpu::foresee<1>(b + t * N, N, width);
  }
  INLINE Step at(int i, std::false_type) const { return {number<1>(now, S(0)), read<S, 1>(b_row, N, i)}; }

  INLINE Number<S, 1> pull(int i, int, const Number<S, 1>& g, const Number<S, 1>& before, std::false_type) {
    grad_b.put(i, g);
    grad_a.put(i, before * g);
    return now * g;
  }
  void clear() {
    grad_a.clear();
    grad_b.clear();
  }
  void store(int64_t t) {
    grad_b.store(db + t * N, N, width, past_caches);
    da[t * groups] = grad_a.total(width);
  }
  void finish() {}
};

// The blocks of a group of channels.
struct Parts {
  int64_t width, count;

  Parts(int64_t batch, int64_t channels, int64_t groups)
      : width(block_width(batch * groups, channels / groups)), count((channels / groups + width - 1) / width) {}
};

// One walk for each batch element, group and block of the group.
template <class Source, bool BACKWARD>
void spread_groups(const Job& job, const Operands& operands, int64_t groups) {
  if (job.batch == 0) return;
  const Parts parts(job.batch, job.channels, groups);
  const int64_t inner = job.channels / groups, grain = kWorthThread / (job.time * parts.width) + 1;
  torch::stable::parallel_for(0, job.batch * groups * parts.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t part = task % parts.count, group = task / parts.count % groups, from = part * parts.width;
      const Block block{task / parts.count / groups, group * inner + from,
                        static_cast<int>(std::min(parts.width, inner - from))};
      Source source(job, block, operands, groups, part);
      if constexpr (BACKWARD) backward(job, source, block); else forward(job, source, block);
    }
#ifdef __AVX__
    _mm_sfence();  // what went past the caches is there for other threads
#endif
  });
}

template <bool BACKWARD>
void run_groups(Job job, const Operands& operands, int64_t groups, ScalarType coefficients, ScalarType values) {
  by_dtype(values, [&](auto e, auto s) {
    job.past_caches &= job.channels / groups * sizeof(e) % 32 == 0;  // where a block of every group begins
    const auto walk = [&](auto a) {
      spread_groups<Shared<decltype(a), decltype(e), decltype(s)>, BACKWARD>(job, operands, groups);
    };
    coefficients == values ? walk(e) : walk(s);
  });
}

ScalarType coefficient_dtype(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() ? b.scalar_type() : state_dtype(b.scalar_type());
}

// Coefficients keep the dtype of the values or take that of the sums.
template <bool BACKWARD>
void run(const Job& job, const Operands& operands, const Extent& x, ScalarType coefficients, ScalarType values) {
  by_dtype(values, [&](auto e, auto s) {
    by_planes(x, [&](auto planes) {
      auto walk = [&](auto a) {
        using Source = Given<decltype(a), decltype(e), decltype(s), decltype(planes)::value>;
        spread<Source, BACKWARD>(job, operands);
      };
      coefficients == values ? walk(e) : walk(s);
    });
  });
}

}  // namespace

std::tuple<Tensor, Tensor> linear_scan(
    Tensor a, Tensor b, Optional h0, Optional lengths, Optional reset, bool reverse) {
  const Extent x(b);
  const ScalarType dtype = b.scalar_type(), wide = state_dtype(dtype);
  Expect(b).here("a", a);
  const Coefficient coefficient(a, coefficient_dtype(a, b), x, true);
  b = dense(b, dtype);
  const Inputs inputs(b, h0, lengths, reset, wide);
  Tensor out = fresh_like(b, dtype), last = state_like(b, wide);
  Job job = inputs.job(b, reverse);
  job.out = out.data_ptr();
  job.last = last.data_ptr();
  Operands operands{};
  operands.a = coefficient.tensor.data_ptr();
  operands.a_batch = coefficient.batch_stride;
  operands.a_time = coefficient.time_stride;
  operands.b = b.data_ptr();
  const ScalarType stored = coefficient.tensor.scalar_type();
  if (coefficient.width < x.row()) run_groups<false>(job, operands, coefficient.width, stored, dtype);
  else run<false>(job, operands, x, stored, dtype);
  return {out, last};
}

std::tuple<Tensor, Tensor, Tensor> linear_scan_backward(
    Tensor grad, Tensor grad_last, Tensor a, Tensor states, Optional h0, Optional lengths, Optional reset,
    bool reverse) {
  const Extent x(states);
  const ScalarType dtype = states.scalar_type(), wide = state_dtype(dtype);
  const Expect expect(states);
  expect.here("a", a);
  expect.shaped("grad", grad, sizes(states));
  expect.shaped("grad_last", grad_last, state_sizes(states));
  const Coefficient coefficient(a, coefficient_dtype(a, states), x, true);
  grad = dense(grad, dtype);
  grad_last = dense(grad_last, wide);
  states = dense(states, dtype);
  const Inputs inputs(states, h0, lengths, reset, wide);
  const bool sum_a = a.size(1) == 1 && (x.time > 1 || a.size(0) == 1);
  STD_TORCH_CHECK(sum_a || a.size(0) == x.batch, "expand a along the batch first");
  Tensor db = fresh_like(states, dtype), dh0 = torch::stable::empty_like(grad_last);
  Job job = inputs.job(states, reverse);
  job.states = states.data_ptr();
  job.grad = grad.data_ptr();
  job.first = grad_last.data_ptr();
  job.last = dh0.data_ptr();
  Operands operands{};
  operands.a = coefficient.tensor.data_ptr();
  operands.a_batch = coefficient.batch_stride;
  operands.a_time = coefficient.time_stride;
  operands.db = db.data_ptr();
  if (coefficient.width < x.row()) {
    const int64_t groups = coefficient.width, blocks = Parts(x.batch, x.channels, groups).count;
    Tensor parts = torch::stable::new_empty(states, {blocks, x.batch, x.time, groups}, wide);
    operands.da_sum = parts.data_ptr();
    run_groups<true>(job, operands, groups, coefficient.tensor.scalar_type(), dtype);
    Tensor da = torch::stable::select(sum_first(parts), 0, 0);
    const int64_t along[2] = {0, 1};
    if (sum_a) da = torch::stable::sum(da, std::vector<int64_t>(along + (a.size(0) > 1), along + 2), true);
    return {dense(da, a.scalar_type()), db, dh0};
  }
  Tensor da = sum_a ? torch::stable::empty_like(grad_last) : fresh_like(states, coefficient.tensor.scalar_type());
  (sum_a ? operands.da_sum : operands.da) = da.data_ptr();
  run<true>(job, operands, x, coefficient.tensor.scalar_type(), dtype);
  if (sum_a) da = torch::stable::unsqueeze(a.size(0) == 1 ? sum_first(da) : da, 1);
  return {dense(da, a.scalar_type()), db, dh0};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("linear_scan", TORCH_BOX(&lrnnx::cpu::linear_scan));
  m.impl("linear_scan_backward", TORCH_BOX(&lrnnx::cpu::linear_scan_backward));
}
