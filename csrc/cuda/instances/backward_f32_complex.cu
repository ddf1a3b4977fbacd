#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<float, 2, true>(Request&);
