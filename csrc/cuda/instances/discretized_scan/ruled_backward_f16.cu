#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_ruled<__half, 1, true>(Request&);
template lrnnx::Optional lrnnx::cuda::run_ruled<__half, 2, true>(Request&);
