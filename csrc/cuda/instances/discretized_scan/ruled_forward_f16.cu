#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_ruled<__half, 1, false>(Request&);
template lrnnx::Optional lrnnx::cuda::run_ruled<__half, 2, false>(Request&);
