// Partial sums of blocks, added in a fixed order: one launch for up to two tensors.
//
// x of 3 rows (a row for each block that summed) and 4 columns, y of 2 rows and 2 columns:
//
//            x                      y
//   row 0    | x00 x01 x02 x03 |    | y00 y01 |
//   row 1    | x10 x11 x12 x13 |    | y10 y11 |
//   row 2    | x20 x21 x22 x23 |
//   thread     0   1   2   3          4   5        each goes down its column, from row 0 on, with the sum in a register
//   sum      | s0  s1  s2  s3  |    | s4  s5  |
#pragma once
#include "request.h"

namespace lrnnx::cuda {

template <class S>
struct Rows {  // x (rows, count) -> sum (count)
  const S* x;
  S* sum;
  int64_t rows, count;
};

template <class S>
__global__ void sum_rows(Rows<S> first, Rows<S> second) {
  int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const Rows<S> which = i < first.count ? first : second;
  if (i >= first.count) i -= first.count;
  if (i >= which.count) return;
  S total = 0;
#pragma unroll 8
  for (int64_t row = 0; row < which.rows; row++) total += which.x[row * which.count + i];
  which.sum[i] = total;
}

template <class S>
Rows<S> rows_of(const Optional& x, Optional& sum) {
  if (!x) return {nullptr, nullptr, 0, 0};
  std::vector<int64_t> shape = sizes(*x);
  shape.erase(shape.begin());
  sum = empty(*x, shape, x->scalar_type());
  return {static_cast<const S*>(x->data_ptr()), static_cast<S*>(sum->data_ptr()), x->size(0), sum->numel()};
}

template <class S>
std::tuple<Optional, Optional> sum_first_as(const Optional& x, const Optional& y, cudaStream_t stream) {
  Optional x_sum, y_sum;
  const Rows<S> first = rows_of<S>(x, x_sum), second = rows_of<S>(y, y_sum);
  const unsigned blocks = static_cast<unsigned>((first.count + second.count + 127) / 128);
  sum_rows<S><<<blocks, 128, 0, stream>>>(first, second);
  check(cudaGetLastError());
  return {x_sum, y_sum};
}

// Sums over the first dimension of one or two tensors.
inline std::tuple<Optional, Optional> sum_first(const Optional& x, const Optional& y, cudaStream_t stream) {
  return x->scalar_type() == ScalarType::Double ? sum_first_as<double>(x, y, stream)
                                                : sum_first_as<float>(x, y, stream);
}

}  // namespace lrnnx::cuda
