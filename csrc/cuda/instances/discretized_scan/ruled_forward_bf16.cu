#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_ruled<__nv_bfloat16, 1, false>(Request&);
template lrnnx::Optional lrnnx::cuda::run_ruled<__nv_bfloat16, 2, false>(Request&);
