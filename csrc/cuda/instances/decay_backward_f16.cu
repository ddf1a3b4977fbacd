#include "../launch.h"

template lrnnx::Optional lrnnx::cuda::run_decay<__half, 2, true>(Request&);
