#include "../../selective_walks.cuh"

template void lrnnx::cuda::walk_reverse<__nv_bfloat16, 1>(const Selective&, int, cudaStream_t);
template void lrnnx::cuda::walk_reverse<__nv_bfloat16, 2>(const Selective&, int, cudaStream_t);
