#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run_decay<double, 2, false>(Request&);
