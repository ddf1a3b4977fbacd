#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run_decay<__nv_bfloat16, 2, false>(Request&);
