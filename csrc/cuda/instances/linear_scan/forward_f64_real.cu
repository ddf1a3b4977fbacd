#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_linear<double, 1, false>(Request&);
