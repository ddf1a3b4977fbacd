#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_impulse<__nv_bfloat16, false>(Request&);
