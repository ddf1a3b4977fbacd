// From a problem to launches: tiles of channels, blocks for each, scratch memory. One instance for a dtype and direction.
#pragma once
#include <algorithm>

#include "discretize.cuh"
#include "gates.cuh"
#include "request.h"
#include "scan.cuh"

namespace lrnnx::cuda {

inline int ceil_div(int64_t x, int64_t y) { return static_cast<int>((x + y - 1) / y); }

template <class G>
int slabs(const Params& p) {  // launches, so that the tiles of each fit on the GPU at once
  return ceil_div(ceil_div(p.N, G::C), attribute(cudaDevAttrMultiProcessorCount));
}

// Fewest chunks for a block, then fewest blocks for a group; false if the shape needs more shared memory than there is.
template <class G>
bool plan(Params& p) {
  const int processors = attribute(cudaDevAttrMultiProcessorCount);
  const size_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (G::shared_bytes(1) > limit) return false;
  const int chunks = ceil_div(p.T, G::TC);
  p.tiles = ceil_div(ceil_div(p.N, G::C), slabs<G>(p));
  p.rounds = 0;
  for (int rows = 1; rows <= p.B && p.tiles * rows <= processors; rows++) {
    int J = std::min(processors / (p.tiles * rows), chunks);
    while (G::shared_bytes(J) > limit) J--;
    const int nper = ceil_div(chunks, J), rounds = ceil_div(p.B, rows);
    const int64_t work = int64_t(rounds) * nper, best = int64_t(p.rounds) * p.nper;
    if (p.rounds && (work > best || (work == best && J >= p.J))) continue;
    p.groups = p.tiles * rows;
    p.J = J;
    p.nper = nper;
    p.rounds = rounds;
  }
  const int64_t maps = p.J > 1 ? int64_t(p.B) * p.tiles * p.nper * p.J : 0;
  p.map_vectors = maps * G::AW * G::C * sizeof(typename G::S) / 16;
  STD_TORCH_CHECK(int64_t(p.rounds) * std::max(p.nper, p.groups) < (int64_t(1) << 31), "batch too large");
  return true;
}

template <class G>
void start(const Request& request, const Params& p) {
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = p.groups * p.J;
  config.blockDim = G::TH;
  config.dynamicSmemBytes = G::shared_bytes(p.J);
  config.stream = request.stream;
  config.attrs = &cooperative;
  config.numAttrs = p.J > 1;
  check(cudaFuncSetAttribute(scan<G>, cudaFuncAttributeMaxDynamicSharedMemorySize, config.dynamicSmemBytes));
  check(cudaLaunchKernelEx(&config, scan<G>, p));
}

inline Tensor scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {ceil_div(bytes, 4)}, ScalarType::Float);
}

// Runs the plan over all channels; returns the partial sums of da, (rows, PL, N), if asked for.
template <class G>
Optional launch(Request& request, Params p) {
  using S = typename G::S;
  Tensor maps = scratch(request.like, p.map_vectors * 16);
  p.maps = maps.data_ptr();
  Optional part;
  if (p.sum_a) {
    const ScalarType wide = sizeof(S) == 8 ? ScalarType::Double : ScalarType::Float;
    part = torch::stable::new_empty(request.like, {p.groups * p.J / p.tiles, G::PL, p.N}, wide);
    p.part = part->data_ptr();
  }
  if (G::BWD && p.dt) {
    request.part_dt = torch::stable::new_empty(request.like, {slabs<G>(p) * p.tiles, p.B, p.T}, part->scalar_type());
    p.part_dt = request.part_dt->data_ptr();
  }
  for (int slab = 0; slab < slabs<G>(p); slab++) {
    p.n0 = slab * p.tiles * G::C;
    start<G>(request, p);
  }
  return part;
}

// Rows of 256 bytes where there are groups enough to fill the GPU, else of 128.
template <class E, int PL, template <class, int, int, bool> class SRC, bool BWD, bool MASKED>
Optional choose(Request& request) {
  using Wide = Shape<E, PL, SRC, BWD, MASKED, 256>;
  using Narrow = Shape<E, PL, SRC, BWD, MASKED, 128>;
  Params p = request.params;
  static_assert(Narrow::FIT >= 2, "narrow rows must fit on every GPU");
  if constexpr (sizeof(E) < 8 && !MASKED && !Wide::Src::TIMED && Wide::K == Narrow::K && Wide::FIT >= Narrow::ST)
    if (int64_t(p.B) * ceil_div(p.N, Wide::C) >= 16 && plan<Wide>(p)) return launch<Wide>(request, p);
  STD_TORCH_CHECK(plan<Narrow>(p), "this GPU has less shared memory than the kernels were built for");
  return launch<Narrow>(request, p);
}

template <class E, int PL, bool BWD>
Optional run_linear(Request& request) {
  if (request.constant) return choose<E, PL, Constant, BWD, false>(request);
  if (request.params.mode) return choose<E, PL, Given, BWD, true>(request);
  return choose<E, PL, Given, BWD, false>(request);
}

template <class E, bool BWD>
Optional run_impulse(Request& request) {
  return request.params.mode ? choose<E, 2, Impulse, BWD, true>(request) : choose<E, 2, Impulse, BWD, false>(request);
}

template <class E, int PL, bool BWD>
Optional run_ruled(Request& request) {
  return request.params.mode ? choose<E, PL, Ruled, BWD, true>(request) : choose<E, PL, Ruled, BWD, false>(request);
}

template <class E, bool BWD>
Optional run_gates(Request& request) {
  return request.masked ? choose<E, 1, Gates, BWD, true>(request) : choose<E, 1, Gates, BWD, false>(request);
}

}  // namespace lrnnx::cuda
