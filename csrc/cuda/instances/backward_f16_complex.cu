#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<__half, 2, true>(Request&);
