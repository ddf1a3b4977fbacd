// lrnnx::advance on CUDA: new states replace the held ones of all active streams, all tensors in one launch.
//
// 3 streams, active = 1 0 1:
//
//                     stream 0    stream 1    stream 2
//   blockIdx.y = 0    held[0]     held[0]     held[0]      threads of all blockIdx.x copy units of 16 bytes (4 or 1 where
//                     ^ fresh     stays       ^ fresh      they are not aligned); unit i is of stream i / units
//   blockIdx.y = 1    held[1] ..                           up to 64 tensors in a launch
#include "chained.cuh"

namespace lrnnx::cuda {
namespace {

constexpr int64_t kLargest = int64_t(1) << 31;  // bytes of a tensor, as advance.py has it
constexpr int kTensors = 64, kCopyThreads = 256;  // of a launch; of a block

struct Advance {
  struct {
    char* to;
    const char* from;
    unsigned row;  // bytes of a stream
  } states[kTensors];
  const bool* active;
  unsigned batch;
};

template <class Unit>
DEVICE void copy_rows(char* to, const char* from, unsigned row, const Advance& p) {
  const unsigned units = row / sizeof(Unit), count = units * p.batch;
  for (unsigned i = blockIdx.x * kCopyThreads + threadIdx.x; i < count; i += gridDim.x * kCopyThreads)
    if (p.active[i / units]) reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
}

__global__ void __launch_bounds__(kCopyThreads) advance_kernel(const Advance p) {
  await_launch_before();
  const auto [to, from, row] = p.states[blockIdx.y];
  const auto places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | row;
  if (places % sizeof(uint4) == 0)
    copy_rows<uint4>(to, from, row, p);
  else if (places % sizeof(uint32_t) == 0)
    copy_rows<uint32_t>(to, from, row, p);
  else
    copy_rows<char>(to, from, row, p);
}

}  // namespace

void advance(std::vector<Tensor> held, std::vector<Tensor> fresh, Tensor active) {
  STD_TORCH_CHECK(held.size() == fresh.size(), "as many new states as there are held ones");
  const torch::stable::accelerator::DeviceGuard guard(active.get_device_index());
  const Expect expect(active);
  active = dense(active, ScalarType::Bool);
  std::vector<Tensor> sources;  // until they are launched
  Advance p{};
  p.active = static_cast<const bool*>(active.data_ptr());
  p.batch = static_cast<unsigned>(active.numel());
  unsigned count = 0;
  int64_t largest = 0;
  const auto launch = [&] {
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>((largest / 16 + kCopyThreads) / kCopyThreads, 512)), count);
    if (count) start_chained(advance_kernel, grid, kCopyThreads, current_stream(active), p);
    count = 0;
    largest = 0;
  };
  for (size_t i = 0; i < held.size(); i++) {
    const int64_t bytes = held[i].numel() * held[i].element_size();
    STD_TORCH_CHECK(held[i].is_contiguous() && held[i].numel() == fresh[i].numel() && bytes <= kLargest &&
                        held[i].dim() > 0 && held[i].size(0) == active.numel(),
                    "a held state must be contiguous, of 2 GiB at most, and sized like the new one and by streams");
    expect.here("a held state", held[i]);
    expect.here("a new state", fresh[i]);
    if (bytes == 0) continue;
    sources.push_back(dense(fresh[i], held[i].scalar_type()));
    p.states[count++] = {static_cast<char*>(held[i].data_ptr()), static_cast<const char*>(sources.back().data_ptr()),
                         static_cast<unsigned>(bytes / p.batch)};
    largest = std::max(largest, bytes);
    if (count == kTensors) launch();
  }
  launch();
}

}  // namespace lrnnx::cuda

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CUDA, m) { m.impl("advance", TORCH_BOX(&lrnnx::cuda::advance)); }
