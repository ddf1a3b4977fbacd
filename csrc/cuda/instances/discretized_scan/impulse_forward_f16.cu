#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_impulse<__half, false>(Request&);
