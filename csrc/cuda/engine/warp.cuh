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

// Eight sums at once, that of value k in the lanes 4k to 4k + 3: at each exchange a lane hands over
// those that are another's.
__device__ inline float warp_sums(const float (&values)[8]) {
  const int lane = lane_number();
  float four[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const bool is_upper = (lane & 16) != 0;
    const float other = is_upper ? values[k] : values[k + 4];
    four[k] = (is_upper ? values[k + 4] : values[k]) + __shfl_xor_sync(kAllLanes, other, 16);
  }
  float two[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const bool is_upper = (lane & 8) != 0;
    const float other = is_upper ? four[k] : four[k + 2];
    two[k] = (is_upper ? four[k + 2] : four[k]) + __shfl_xor_sync(kAllLanes, other, 8);
  }
  const bool is_upper = (lane & 4) != 0;
  const float other = is_upper ? two[0] : two[1];
  float one = (is_upper ? two[1] : two[0]) + __shfl_xor_sync(kAllLanes, other, 4);
  one += __shfl_xor_sync(kAllLanes, one, 2);
  return one + __shfl_xor_sync(kAllLanes, one, 1);
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
