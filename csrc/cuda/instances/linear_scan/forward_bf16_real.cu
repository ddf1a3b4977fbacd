#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_linear<__nv_bfloat16, 1, false>(Request&);
