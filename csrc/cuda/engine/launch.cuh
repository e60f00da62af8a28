// Kernel launches and shared memory, and what stands for the CUDA runtime when the kernels run on
// a CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef DMLFAST_EMULATION
#include "engine/emulation.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Launches on a stream; the caller checks for errors.
#define DMLFAST_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)

// The same with dynamic shared memory, which the kernel finds by DMLFAST_SHARED_MEMORY.
#define DMLFAST_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...)        \
  do {                                                                        \
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, \
                         static_cast<int>(bytes));                            \
    kernel<<<(grid), (block), (bytes), (stream)>>>(__VA_ARGS__);              \
  } while (false)

#define DMLFAST_SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

namespace dmlfast::cuda {

#ifndef DMLFAST_MAXIMUM_GRID
#define DMLFAST_MAXIMUM_GRID 65535
#endif
// Blocks of a launch; they go on to further work where there is more.
constexpr unsigned kMaximumGrid = DMLFAST_MAXIMUM_GRID;

inline unsigned grid_for(int64_t blocks) {
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < kMaximumGrid ? blocks : kMaximumGrid);
}

// Blocks in which each of so many elements has a thread.
constexpr int kElementThreads = 256;
constexpr int kElementWarps = kElementThreads / 32;

inline dim3 element_blocks(int64_t elements) {
  return dim3{grid_for((elements + kElementThreads - 1) / kElementThreads)};
}

}  // namespace dmlfast::cuda
