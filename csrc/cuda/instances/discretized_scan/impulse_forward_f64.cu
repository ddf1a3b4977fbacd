#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_impulse<double, false>(Request&);
