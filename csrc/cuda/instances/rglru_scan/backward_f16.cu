#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_gates<__half, true>(Request&);
