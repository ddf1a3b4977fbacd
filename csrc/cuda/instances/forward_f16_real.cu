#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<__half, 1, false>(Request&);
