#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run<double, 2, false>(Request&);
