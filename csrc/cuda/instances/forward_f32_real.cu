#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<float, 1, false>(Request&);
