#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_ruled<float, 1, true>(Request&);
template lrnnx::Optional lrnnx::cuda::run_ruled<float, 2, true>(Request&);
