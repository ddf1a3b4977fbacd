#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_linear<float, 2, false>(Request&);
