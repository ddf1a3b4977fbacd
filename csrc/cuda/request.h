// What the operators prepare on the host; kernels are compiled elsewhere.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "../check.h"
#include "../by_rule.h"
#include "source.cuh"

namespace lrnnx::cuda {

enum class Kind { kLinear, kDiscretized, kGates };

struct Request {
  Params params;   // pointers, strides, extents and flags; `plan` fills the rest
  int planes;
  bool constant;   // coefficients are the same at every step
  Tensor like;     // device and allocator of scratch memory
  cudaStream_t stream;
  bool masked = false;  // kHold or kCut may be among the modes of a scan by gates
  Optional part_dt = std::nullopt;  // out: partial sums of the gradient of dt, (tiles, B, T)
};

// Run a scan; return the partial sums over time, (rows, PL, N), if asked for. Instances are in instances/OPERATOR/, which
// are linked to that operator alone.
template <class E, int PL, bool BWD>
Optional run_linear(Request& request);
template <class E, bool BWD>
Optional run_impulse(Request& request);
template <class E, int PL, bool BWD>
Optional run_ruled(Request& request);
template <class E, bool BWD>
Optional run_gates(Request& request);

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

inline int attribute(cudaDeviceAttr which) {
  int device, value;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

template <Kind KIND, class E, bool BWD>
Optional run_with(Request& request) {
  const bool real = request.planes == 1;
  if constexpr (KIND == Kind::kGates) return run_gates<E, BWD>(request);
  if constexpr (KIND == Kind::kLinear)
    return real ? run_linear<E, 1, BWD>(request) : run_linear<E, 2, BWD>(request);
  if constexpr (KIND == Kind::kDiscretized) {
    if (!real && rules::is<rules::Impulse>(request.params.rule)) return run_impulse<E, BWD>(request);
    return real ? run_ruled<E, 1, BWD>(request) : run_ruled<E, 2, BWD>(request);
  }
}

// run(a number of the type that `dtype` names)
template <class F>
auto by_dtype(ScalarType dtype, const F& run) {
  if (dtype == ScalarType::Float) return run(float{});
  if (dtype == ScalarType::Double) return run(double{});
  if (dtype == ScalarType::Half) return run(__half{});
  if (dtype == ScalarType::BFloat16) return run(__nv_bfloat16{});
  STD_TORCH_CHECK(false, "kernels take float32, float64, bfloat16 and float16");
}

template <Kind KIND, bool BWD>
Optional run(ScalarType dtype, Request& request) {
  return by_dtype(dtype, [&](auto e) { return run_with<KIND, decltype(e), BWD>(request); });
}

// The dtype in which data is read: that of the values, unless full coefficients have another.
inline ScalarType stored_dtype(const Tensor& a, const Tensor& b, bool constant) {
  return constant || a.scalar_type() == b.scalar_type() ? b.scalar_type() : state_dtype(b.scalar_type());
}

inline bool is_constant(const Tensor& a) { return a.size(0) == 1 && a.size(1) == 1; }

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream) == 0, "no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline bool row_aligned(const void* data, int64_t stride, int64_t size) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size % 16 == 0;
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

// A request with all but the outputs and `add_input`s.
inline Request prepare(const Extent& x, const Tensor& values, const Coefficient& a, const Optional& mode, bool constant,
                       bool flip) {
  STD_TORCH_CHECK(x.batch < (1ll << 31) && x.time < (1ll << 30) && x.channels < (1ll << 31), "extent too large");
  const int64_t size = values.element_size();
  Request request{{}, static_cast<int>(x.planes), constant, values, current_stream(values)};
  Params& p = request.params;
  p.x = values.data_ptr();
  p.a = a.tensor.data_ptr();
  p.a_batch = a.batch_stride;
  p.a_time = a.time_stride;
  p.mode = data_or_null<int>(mode);
  p.B = static_cast<int>(x.batch);
  p.T = static_cast<int>(x.time);
  p.N = static_cast<int>(x.channels);
  p.flip = flip;
  p.aligned = row_aligned(p.x, x.channels, size) &&
              (constant || (row_aligned(p.a, a.batch_stride, size) && row_aligned(p.a, a.time_stride, size)));
  return request;
}

// The pointer of one more tensor shaped like the values.
inline const void* add_input(Request& request, const Tensor& x) {
  request.params.aligned &= row_aligned(x.data_ptr(), request.params.N, x.element_size());
  return x.data_ptr();
}

// Values for each channel, (P, N) or (N,), in the place of constant coefficients and in the precision of sums.
inline Coefficient channels(const Tensor& z, const Extent& x, ScalarType wide) {
  return Coefficient(torch::stable::reshape(dense(z, wide), {1, 1, x.row()}), wide, x);
}

}  // namespace lrnnx::cuda
