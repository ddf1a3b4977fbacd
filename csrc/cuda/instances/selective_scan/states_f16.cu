#include "../../selective_walks.cuh"

template void lrnnx::cuda::walk_states<__half, 1>(const Selective&, int, cudaStream_t);
template void lrnnx::cuda::walk_states<__half, 2>(const Selective&, int, cudaStream_t);
