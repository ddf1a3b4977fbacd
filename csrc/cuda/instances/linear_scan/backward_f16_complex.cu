#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_linear<__half, 2, true>(Request&);
