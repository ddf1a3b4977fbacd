#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_gates<double, false>(Request&);
