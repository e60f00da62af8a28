// Sums and extremes over the lanes of a warp, the same in every lane.
#pragma once

#include "engine/launch.cuh"

namespace dmlfast::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

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

}  // namespace dmlfast::cuda
