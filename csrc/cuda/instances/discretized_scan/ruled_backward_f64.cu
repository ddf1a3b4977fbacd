#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_ruled<double, 1, true>(Request&);
template lrnnx::Optional lrnnx::cuda::run_ruled<double, 2, true>(Request&);
