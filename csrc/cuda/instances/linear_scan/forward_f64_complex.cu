#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_linear<double, 2, false>(Request&);
