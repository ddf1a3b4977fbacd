// What the CPU and CUDA entries of an operator share: argument checks and dtypes, on torch's stable ABI only.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

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

inline Tensor dense(const Tensor& x, ScalarType dtype) {
  return torch::stable::contiguous(x.scalar_type() == dtype ? x : torch::stable::to(x, dtype));
}

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

// (B, T, N), or (B, T, P, N) with P planes.
struct Extent {
  int64_t batch, time, planes, channels;

  explicit Extent(const Tensor& x)
      : batch(x.size(0)), time(x.size(1)), planes(x.dim() == 4 ? x.size(2) : 1), channels(x.size(x.dim() - 1)) {
    STD_TORCH_CHECK(x.dim() == 3 || (x.dim() == 4 && (planes == 1 || planes == 2)),
                    "expected (B, T, N), or (B, T, P, N) with 1 or 2 planes");
  }
  int64_t row() const { return planes * channels; }
};

// Coefficients that broadcast along batch and time: strides of 0 there, states contiguous.
struct Coefficient {
  Tensor tensor;
  int64_t batch_stride, time_stride;

  Coefficient(const Tensor& a, ScalarType dtype, const Extent& x) : tensor(a), batch_stride(0), time_stride(0) {
    bool packed = a.scalar_type() == dtype;
    int64_t expected = 1;
    for (int64_t d = a.dim() - 1; d > 1; d--) {
      packed &= a.size(d) == 1 || a.stride(d) == expected;
      expected *= a.size(d);
    }
    STD_TORCH_CHECK(expected == x.row(), "a and b have different states");
    if (!packed) tensor = dense(a, dtype);
    batch_stride = tensor.size(0) == 1 ? 0 : tensor.stride(0);
    time_stride = tensor.size(1) == 1 && x.time > 1 ? 0 : tensor.stride(1);
  }
};

}  // namespace lrnnx
