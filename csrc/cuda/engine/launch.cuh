// Kernel launches, and what stands for the CUDA runtime when the kernels run on a CPU.
#pragma once

#ifdef DMLFAST_EMULATION
#include "engine/emulation.h"
#else
#include <cuda_runtime.h>

// Launches on a stream; the caller checks for errors.
#define DMLFAST_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
#endif
