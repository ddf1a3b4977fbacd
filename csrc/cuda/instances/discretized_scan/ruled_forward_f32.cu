#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_ruled<float, 1, false>(Request&);
template lrnnx::Optional lrnnx::cuda::run_ruled<float, 2, false>(Request&);
