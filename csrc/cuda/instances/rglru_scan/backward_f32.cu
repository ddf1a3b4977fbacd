#include "../../launch.h"

template lrnnx::Optional lrnnx::cuda::run_gates<float, true>(Request&);
