// lrnnx::row_linear on CUDA: a matmul of a few rows by tensor cores, to the accuracy of float32, and what follows it.
//
// A block computes 16 outputs for 8 rows. Its 16 warps share the inputs: warp 0 takes inputs 0 to 15, warp 1 inputs 16 to
// 31, and so on. Each weight is read once, from global memory into registers. Lane 4 g + t of a warp reads:
//
//   input              0 - 3    4 - 7    8 - 11   12 - 15                    0 - 3    4 - 7    8 - 11   12 - 15
//   weight, output g   t = 0    t = 1    t = 2    t = 3          x, row g    t = 0    t = 1    t = 2    t = 3
//       output g + 8   t = 0    t = 1    t = 2    t = 3
//
//   row of x           0   1    2   3    4   5    6   7
//   sums, output g     t = 0    t = 1    t = 2    t = 3          and output g + 8, in registers
//
//   registers --> shared parts[warp][row][output] --> a thread adds the 16 warps for one (row, output), and stores y
//
// A tensor core wants the inputs of a product in another order. Any order gives the same sum if weights and x have the
// same one, so the 16 bytes that a lane reads are used as they come. Tensor cores take 11 bits of a number: each number
// is split into a high and a low part, and three products of parts are added (low times low is too small to count).
#include "chained.cuh"

namespace lrnnx::cuda {
namespace {

constexpr int kOutputs = 16, kWarps = 16;  // of a block
constexpr int kInputs = 16;                // of a warp at a time

enum Activation { kNone, kSigmoid, kGelu };  // as row_linear.py numbers them

struct Rows {
  const float *x, *weight, *bias, *skip, *via, *times;  // the last four may be null
  float* y;
  int64_t x_row, via_row, times_row;  // strides
  int rows, inputs, outputs;          // `inputs` of a head
  int heads, share;                   // output m reads the inputs of head m / share % heads
  int activation;
  bool gelu;                          // of x, before all else
};

DEVICE float upper(float x) {  // to 11 bits
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return __uint_as_float(r);
}
DEVICE void multiply(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  const auto bits = [](float x) { return __float_as_uint(x); };
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b[0])), "r"(bits(b[1])));
}

template <int N>
struct Split {
  float high[N], low[N];
  DEVICE explicit Split(const float (&x)[N]) {
    UNROLL for (int i = 0; i < N; i++) {
      high[i] = upper(x[i]);
      low[i] = x[i] - high[i];
    }
  }
};

DEVICE float activated(float x, int activation) {
  if (activation == kSigmoid) return sigmoid(x);
  // ½ x (1 + tanh z) = x σ(2z)
  if (activation == kGelu) return x * sigmoid(1.59576912f * fmaf(.044715f * x * x, x, x));
  return x;
}

DEVICE float gelu(float x) { return .5f * x * (1 + erff(.707106781f * x)); }

DEVICE float4 load_inputs(const float* from, bool ok) {
  return ok ? *reinterpret_cast<const float4*>(from) : make_float4(0, 0, 0, 0);
}

// A block takes TILES of 8 rows. With HALVES it takes 4 rows and 8 outputs, so that there are twice as many blocks. Its
// product of 16 outputs and 8 rows then holds the same 8 outputs and 4 rows for two halves of 32 inputs. Two quarters of
// it have weights and x of the same half, and are added; the other two are not used:
//
//                              rows 0-3, inputs 0-15    rows 0-3, inputs 16-31
//   outputs 0-7, inputs 0-15   used                     -
//   outputs 0-7, inputs 16-31  -                        used
template <int TILES, bool HALVES>
__global__ void __launch_bounds__(kWarps * 32) row_linear_kernel(const Rows p) {
  constexpr int N = HALVES ? 4 : TILES * 8, M = HALVES ? kOutputs / 2 : kOutputs, TURN = HALVES ? 2 * kInputs : kInputs;
  constexpr int PITCH = kOutputs + 4;  // without bank conflicts
  __shared__ float parts[kWarps][N * PITCH];
  await_launch_before();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int m0 = blockIdx.x * M, n0 = blockIdx.y * N, half = HALVES ? kInputs : 0;
  const auto row_of = [&](int m) { return p.weight + int64_t(min(m, p.outputs - 1)) * p.inputs; };
  const float *const one = row_of(m0 + g), *const other = HALVES ? one : row_of(m0 + g + 8);
  const float* const x = p.x + int64_t(m0 / p.share % p.heads) * p.inputs;
  float sums[TILES][4] = {};
#pragma unroll 4
  for (int k = warp * TURN + t * 4; k - t * 4 < p.inputs; k += kWarps * TURN) {
    const float4 w = load_inputs(one + k, k < p.inputs), v = load_inputs(other + k + half, k + half < p.inputs);
    const Split<4> first({w.x, v.x, w.y, v.y}), second({w.z, v.z, w.w, v.w});
    UNROLL for (int tile = 0; tile < TILES; tile++) {
      const int n = n0 + (HALVES ? g % 4 : tile * 8 + g), at = k + g / 4 * half;
      float4 u = load_inputs(x + n * p.x_row + at, at < p.inputs && n < p.rows);
      if (p.gelu) u = make_float4(gelu(u.x), gelu(u.y), gelu(u.z), gelu(u.w));
      const Split<2> a({u.x, u.y}), b({u.z, u.w});
      float high[4] = {}, low[4] = {}, other_low[4] = {};  // tensor cores cut off what they add: few at a time
      multiply(low, first.low, a.high);
      multiply(other_low, first.high, a.low);
      multiply(high, first.high, a.high);
      multiply(low, second.low, b.high);
      multiply(other_low, second.high, b.low);
      multiply(high, second.high, b.high);
      UNROLL for (int i = 0; i < 4; i++) sums[tile][i] += high[i] + (low[i] + other_low[i]);
    }
  }
  UNROLL for (int tile = 0; tile < TILES; tile++)
    UNROLL for (int i = 0; i < 4; i++) {
      const int n = tile * 8 + t * 2 + i % 2, m = g + i / 2 * 8;
      if (!HALVES || n / 4 == m / 8) parts[warp][n % N * PITCH + m] = sums[tile][i];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < N * M; i += kWarps * 32) {
    const int n = n0 + i / M, m = m0 + i % M;
    if (n >= p.rows || m >= p.outputs) continue;
    float sum = p.bias ? p.bias[m] : 0;
    UNROLL for (int k = 0; k < kWarps; k++) {
      const float* const part = parts[k] + i / M * PITCH + i % M;
      sum += HALVES ? part[0] + part[M] : part[0];
    }
    if (p.skip) sum = fmaf(p.skip[m], p.via[n * p.via_row + m], sum);
    sum = activated(sum, p.activation);
    p.y[int64_t(n) * p.outputs + m] = p.times ? sum * p.times[n * p.times_row + m] : sum;
  }
}

// If there are too few blocks to fill the GPU, HALVES makes more; if there are many, each takes more rows.
void start(const Rows& p, cudaStream_t stream) {
  const auto run = [&](auto kernel, int outputs, int rows) {
    const dim3 grid((p.outputs + outputs - 1) / outputs, (p.rows + rows - 1) / rows);
    start_chained(kernel, grid, kWarps * 32, stream, p);
  };
  const int blocks = (p.outputs + kOutputs - 1) / kOutputs * ((p.rows + 7) / 8);
  const int at_once = attribute(cudaDevAttrMultiProcessorCount);
  if (p.rows <= 4 && blocks < at_once) return run(row_linear_kernel<1, true>, kOutputs / 2, 4);
  if (blocks <= 2 * at_once) return run(row_linear_kernel<1, false>, kOutputs, 8);
  run(row_linear_kernel<2, false>, kOutputs, 16);
}

// x itself if each row is contiguous, with any stride between rows; else a copy.
Tensor rows_of(const Tensor& x) { return x.size(1) == 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x); }
Optional rows_of(const Optional& x) { return x ? Optional(rows_of(*x)) : std::nullopt; }

// x itself if every row can be read 16 bytes at once; else a copy.
Tensor quads(const Tensor& x) {
  const bool whole = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0 && (x.size(0) == 1 || x.stride(0) % 4 == 0);
  return whole ? x : torch::stable::clone(torch::stable::contiguous(x));
}

}  // namespace

Tensor row_linear(Tensor x, Tensor weight, Optional bias, Optional skip, Optional via, Optional times, int64_t heads,
                  int64_t activation, bool gelu) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ScalarType dtype = ScalarType::Float;
  STD_TORCH_CHECK(x.dim() == 2 && heads >= 1, "x must be (rows, inputs), and heads 1 or more");
  const Expect expect(x);
  const int64_t wide = whole("weight", weight, {2}).size(0);
  expect.here("weight", weight);
  expect.shaped("bias", bias, {wide});
  expect.shaped("skip", skip, {wide});
  expect.shaped("via", via, {x.size(0), wide});
  expect.shaped("times", times, {x.size(0), wide});
  STD_TORCH_CHECK(via || !skip, "skip needs via");
  STD_TORCH_CHECK(x.scalar_type() == dtype && weight.scalar_type() == dtype && (!via || via->scalar_type() == dtype) &&
                      (!times || times->scalar_type() == dtype),
                  "row_linear's kernel takes float32");
  Rows p{};
  p.rows = static_cast<int>(x.size(0));
  p.inputs = static_cast<int>(weight.size(1));
  p.outputs = static_cast<int>(weight.size(0));
  p.heads = static_cast<int>(heads);
  p.share = heads == 1 ? p.outputs : static_cast<int>(x.size(1) / heads);
  STD_TORCH_CHECK(x.size(1) == heads * p.inputs && p.inputs % 4 == 0 && (heads == 1 || p.inputs % kOutputs == 0) &&
                      wide % (heads * (heads == 1 ? 1 : p.inputs)) == 0,
                  "x and weight do not fit row_linear's kernel");
  x = quads(rows_of(x));
  weight = quads(torch::stable::contiguous(weight));
  bias = dense(bias, dtype);
  skip = dense(skip, dtype);
  via = rows_of(via);
  times = rows_of(times);
  Tensor y = empty(x, {p.rows, p.outputs}, dtype);
  if (y.numel() == 0) return y;
  p.x = static_cast<const float*>(x.data_ptr());
  p.weight = static_cast<const float*>(weight.data_ptr());
  p.bias = data_or_null<float>(bias);
  p.skip = data_or_null<float>(skip);
  p.via = data_or_null<float>(via);
  p.times = data_or_null<float>(times);
  p.x_row = x.stride(0);
  p.via_row = via ? via->stride(0) : 0;
  p.times_row = times ? times->stride(0) : 0;
  p.y = static_cast<float*>(y.data_ptr());
  p.activation = static_cast<int>(activation);
  p.gelu = gelu;
  start(p, current_stream(x));
  return y;
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) { m.impl("row_linear", TORCH_BOX(&lrnnx::cuda::row_linear)); }
