// What the CPU and CUDA entries of an operator share: argument checks and dtypes, on torch's stable ABI only.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

namespace lrnnx {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// Sums of half-precision storage run in float32, as `state_dtype` in linear_scan.py says.
inline ScalarType state_dtype(ScalarType dtype) {
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

inline Tensor as(const Tensor& x, ScalarType dtype) {
  return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
}

inline Optional as(const Optional& x, ScalarType dtype) { return x ? Optional(as(*x, dtype)) : std::nullopt; }

inline Tensor dense(const Tensor& x, ScalarType dtype) { return torch::stable::contiguous(as(x, dtype)); }

inline Optional dense(const Optional& x, ScalarType dtype) {
  return x ? Optional(dense(*x, dtype)) : std::nullopt;
}

template <class T>
const T* data_or_null(const Optional& x) {
  return x ? static_cast<const T*>(x->data_ptr()) : nullptr;
}

inline std::vector<int64_t> sizes(const Tensor& x) {
  return std::vector<int64_t>(x.sizes().begin(), x.sizes().end());
}

// Refuses operands that a kernel would read beyond, or could not read. What Python says of them in full is repeated
// here in brief, since an operator may be called without it.
class Expect {
  const Tensor& like_;

 public:
  explicit Expect(const Tensor& like) : like_(like) {}

  void here(const char* name, const Tensor& x) const {
    STD_TORCH_CHECK(x.is_cuda() == like_.is_cuda() && x.is_cpu() == like_.is_cpu() &&
                        x.get_device_index() == like_.get_device_index(),
                    name, " must be on the device of the others");
  }
  void here(const char* name, const Optional& x) const {
    if (x) here(name, *x);
  }
  void shaped(const char* name, const Tensor& x, const std::vector<int64_t>& shape) const {
    STD_TORCH_CHECK(sizes(x) == shape, name, " has another shape than the others ask for");
    here(name, x);
  }
  void shaped(const char* name, const Optional& x, const std::vector<int64_t>& shape) const {
    if (x) shaped(name, *x, shape);
  }
  void broadcast(const char* name, const Optional& x, const std::vector<int64_t>& shape) const {
    if (!x) return;
    const int64_t missing = static_cast<int64_t>(shape.size()) - x->dim();
    bool fits = missing >= 0;
    for (int64_t d = 0; fits && d < x->dim(); d++) fits = x->size(d) == 1 || x->size(d) == shape[d + missing];
    STD_TORCH_CHECK(fits, name, " does not broadcast to the shape of the others");
    here(name, *x);
  }
  // (B,) and (B, T)
  void steps(const Optional& lengths, const Optional& reset) const {
    shaped("lengths", lengths, {like_.size(0)});
    shaped("reset", reset, {like_.size(0), like_.size(1)});
  }
};

// Refuses a tensor of other dimensions, or without elements for another reason than a batch of none.
inline const Tensor& whole(const char* name, const Tensor& x, std::initializer_list<int64_t> dimensions) {
  bool fits = false;
  for (int64_t n : dimensions) fits |= x.dim() == n;
  STD_TORCH_CHECK(fits, name, " has too many or too few dimensions");
  for (int64_t d = 1; d < x.dim(); d++) STD_TORCH_CHECK(x.size(d) > 0, name, " must not be empty but for its batch");
  return x;
}

// (B, T, N), or (B, T, P, N) with P planes.
struct Extent {
  int64_t batch, time, planes, channels;

  explicit Extent(const Tensor& x)
      : batch(whole("a sequence", x, {3, 4}).size(0)), time(x.size(1)), planes(x.dim() == 4 ? x.size(2) : 1),
        channels(x.size(x.dim() - 1)) {
    STD_TORCH_CHECK(planes == 1 || planes == 2, "expected (B, T, N), or (B, T, P, N) with 1 or 2 planes");
  }
  int64_t row() const { return planes * channels; }
};

// The shape of a state, (B, N) or (B, P, N), from that of a sequence.
inline std::vector<int64_t> state_sizes(const Tensor& x) {
  std::vector<int64_t> shape = sizes(x);
  shape.erase(shape.begin() + 1);
  return shape;
}

// Coefficients (B or 1, T or 1, states): contiguous states, and a stride of 0 along a dimension that broadcasts. If they
// may be `shared`, there may be fewer real ones than channels: each then serves a group of neighbours, all of one size.
struct Coefficient {
  Tensor tensor;
  int64_t batch_stride, time_stride, width;

  Coefficient(const Tensor& a, ScalarType dtype, const Extent& x, bool shared = false)
      : tensor(a), batch_stride(0), time_stride(0), width(1) {
    STD_TORCH_CHECK(a.dim() >= 3 && (a.size(0) == 1 || a.size(0) == x.batch) && (a.size(1) == 1 || a.size(1) == x.time),
                    "a does not broadcast along batch and time to b");
    bool packed = a.scalar_type() == dtype;
    int64_t expected = 1;
    for (int64_t d = a.dim() - 1; d > 1; d--) {
      packed &= a.size(d) == 1 || a.stride(d) == expected;
      expected *= a.size(d);
    }
    const bool fits = shared && x.planes == 1 && a.dim() == 3 && expected > 0 && x.channels % expected == 0;
    STD_TORCH_CHECK(expected == x.row() || fits, "a and b have different states");
    width = expected;
    if (!packed) tensor = dense(a, dtype);
    batch_stride = tensor.size(0) == 1 ? 0 : tensor.stride(0);
    time_stride = tensor.size(1) == 1 && x.time > 1 ? 0 : tensor.stride(1);
  }
};

// Of short_conv, x (B, T, D) and weight (D, W).
inline void expect_taps(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& state,
                        const Optional& lengths, const Optional& reset) {
  whole("x", x, {3});
  whole("weight", weight, {2});
  const Expect expect(x);
  expect.shaped("weight", weight, {x.size(2), weight.size(1)});
  expect.shaped("bias", bias, {x.size(2)});
  expect.shaped("state", state, {x.size(0), weight.size(1) - 1, x.size(2)});
  expect.steps(lengths, reset);
}
inline void expect_gradients(const Tensor& grad, const Tensor& grad_last, const Tensor& x, int64_t width) {
  const Expect expect(x);
  expect.shaped("grad", grad, sizes(x));
  expect.shaped("grad_last", grad_last, {x.size(0), width - 1, x.size(2)});
}

// Of selective_scan: u (B, T, D), A (D, P, N), B and C (B or 1, T or 1, G, P, N).
inline void expect_selective(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                             const Optional& D, const Optional& z, const Optional& bias, const Optional& dt,
                             const Optional& h0, const Optional& lengths, const Optional& reset) {
  whole("u", u, {3});
  whole("A", A, {2, 3});
  const Expect expect(u);
  const int64_t batch = u.size(0), time = u.size(1), channels = u.size(2);
  STD_TORCH_CHECK(A.size(0) == channels && (A.dim() == 2 || A.size(1) == 2), "A must be (D, N) or (D, 2, N)");
  expect.here("A", A);
  for (const Tensor* x : {&B, &C}) {
    expect.here("B and C", whole("B and C", *x, {A.dim() + 2}));
    std::vector<int64_t> inner = sizes(A);
    inner[0] = B.size(2);
    STD_TORCH_CHECK((x->size(0) == 1 || x->size(0) == batch) && (x->size(1) == 1 || x->size(1) == time) &&
                        std::vector<int64_t>(x->sizes().begin() + 2, x->sizes().end()) == inner && channels % inner[0] == 0,
                    "B and C must be (B, T, G, N) or (B, T, G, 2, N) with G dividing D");
  }
  expect.shaped("delta", delta, sizes(u));
  expect.shaped("z", z, sizes(u));
  expect.shaped("D", D, {channels});
  expect.shaped("bias", bias, {channels});
  expect.shaped("dt", dt, {batch, time});
  std::vector<int64_t> state = sizes(A);
  state.insert(state.begin(), batch);
  expect.shaped("h0", h0, state);
  expect.steps(lengths, reset);
}
inline void expect_selective_gradients(const Tensor& grad, const Tensor& grad_last, const Tensor& u, const Tensor& A) {
  const Expect expect(u);
  std::vector<int64_t> state = sizes(A);
  state.insert(state.begin(), u.size(0));
  expect.shaped("grad", grad, sizes(u));
  expect.shaped("grad_last", grad_last, state);
}

// Of diagonal_step: h (B, G, P, n), and what broadcasts to it.
inline void expect_step(const Tensor& v, const Tensor& h, const Tensor& a, const Optional& gain, const Optional& c,
                        const Optional& direct, const Optional& step, const Optional& dt, const Optional& gate) {
  whole("h", h, {4});
  STD_TORCH_CHECK(h.size(2) <= 2, "h must be (B, G, P, n)");
  const Expect expect(h);
  const int64_t batch = h.size(0), groups = h.size(1);
  const bool shared_input = v.dim() == 2;
  STD_TORCH_CHECK(shared_input || !direct, "direct reads a v of (B, G)");
  expect.shaped("v", v, shared_input ? std::vector<int64_t>{batch, groups} : sizes(h));
  expect.broadcast("a", a, sizes(h));
  expect.broadcast("gain", gain, sizes(h));
  expect.broadcast("c", c, sizes(h));
  expect.broadcast("step", step, {batch, groups, h.size(3)});
  expect.shaped("direct", direct, {groups});
  expect.shaped("dt", dt, {batch});
  expect.shaped("gate", gate, {batch, groups});
}

}  // namespace lrnnx
