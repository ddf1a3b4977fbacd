#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<__nv_bfloat16, 2, true>(Request&);
