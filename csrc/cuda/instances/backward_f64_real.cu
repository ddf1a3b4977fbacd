#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<double, 1, true>(Request&);
