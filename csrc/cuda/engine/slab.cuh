// Slabs: some dimensions of some rows, in shared memory as float64.
#pragma once

#include "engine/any_rows.cuh"

namespace dmlfast::cuda {

constexpr int kSlabThreads = 256;  // the block's threads, all of which copy
constexpr int kSlabLoads = 6;      // elements that a thread has under way at once
constexpr int kAnyLoads = 4;       // the same of rows of any dtype: these take more registers

// The dimensions [first, first + columns) of rows that begin `stride` elements apart, at most
// `width` of them, a power of two. An odd stride keeps threads that read the same dimension of
// neighbouring rows off each other's banks.
struct Slab {
  int first;
  int columns;
  int width;

  __device__ int stride() const { return width + 1; }
};

__device__ inline Slab slab_at(int first, int64_t dimensions, int width) {
  const int64_t left = dimensions - first;
  return {first, static_cast<int>(left < width ? left : width), width};
}

// Copies the rows row_of(0) .. row_of(rows - 1); neighbouring threads read neighbouring dimensions.
template <int kLoads = kSlabLoads, class T, class RowOf>
__device__ __forceinline__ void stage_slab(const Rows<T>& source, int rows, const RowOf& row_of,
                                           const Slab& slab, double* to) {
  const int k = static_cast<int>(threadIdx.x) % slab.width;
  const int step = kSlabThreads / slab.width;
  if (k >= slab.columns) {
    return;
  }
  const T* from = source.data + (slab.first + k) * source.column_stride;
  for (int row = static_cast<int>(threadIdx.x) / slab.width; row < rows; row += kLoads * step) {
    T held[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (row + i * step < rows) {
        held[i] = from[row_of(row + i * step) * source.row_stride];
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (row + i * step < rows) {
        to[(row + i * step) * slab.stride() + k] =
            static_cast<double>(static_cast<typename Widened<T>::type>(held[i]));
      }
    }
  }
}

template <class RowOf>
__device__ __forceinline__ void stage_slab(const AnyRows& source, int rows, const RowOf& row_of,
                                           const Slab& slab, double* to) {
  with_rows(source,
            [&](const auto& typed) { stage_slab<kAnyLoads>(typed, rows, row_of, slab, to); });
}

// One dimension's share of a pair's sum.
template <bool kDifferences>
__device__ __forceinline__ double share_of(double x, double y) {
  if (kDifferences) {
    const double difference = x - y;
    return difference * difference;
  }
  return x * y;
}

}  // namespace dmlfast::cuda
