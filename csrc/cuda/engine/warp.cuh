// Sums and extremes over the lanes of a warp, the same in every lane.
#pragma once

#include "engine/launch.cuh"

namespace dmlfast::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Of the calling thread. Divided as unsigned numbers, which takes one instruction: so the compiler
// computes them again where they are wanted, and keeps none in registers.
__device__ inline int lane_number() { return static_cast<int>(threadIdx.x % 32); }
__device__ inline int warp_number() { return static_cast<int>(threadIdx.x / 32); }

template <class T>
__device__ inline T warp_sum(T value) {
  for (int bits = 16; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, bits);
  }
  return value;
}

template <class T>
__device__ inline T warp_greatest(T value) {
  for (int bits = 16; bits > 0; bits /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, bits);
    value = value < other ? other : value;
  }
  return value;
}

template <class T>
__device__ inline T warp_least(T value) {
  for (int bits = 16; bits > 0; bits /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, bits);
    value = other < value ? other : value;
  }
  return value;
}

// In an unrolled loop over columns: keeps the compiler from having what belongs to all of them in
// registers at once.
__device__ inline void keep_column_order(int j) {
  if (j % 4 == 3) {
    __syncwarp();
  }
}

}  // namespace dmlfast::cuda
