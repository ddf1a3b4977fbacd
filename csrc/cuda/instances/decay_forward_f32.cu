#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run_decay<float, 2, false>(Request&);
