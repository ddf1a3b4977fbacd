#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<__nv_bfloat16, 1, true>(Request&);
