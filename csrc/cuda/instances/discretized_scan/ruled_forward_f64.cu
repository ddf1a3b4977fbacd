#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_ruled<double, 1, false>(Request&);
template lrnnx::Optional lrnnx::cuda::run_ruled<double, 2, false>(Request&);
