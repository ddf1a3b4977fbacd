#include "../../selective_walks.cuh"

template void lrnnx::cuda::walk_states<float, 1>(const Selective&, int, cudaStream_t);
template void lrnnx::cuda::walk_states<float, 2>(const Selective&, int, cudaStream_t);
