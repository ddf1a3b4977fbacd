#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_gates<__nv_bfloat16, true>(Request&);
