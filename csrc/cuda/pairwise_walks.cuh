// The walks over pairs whose distances are stored, or differentiated: other families' packed rows
// go through them, too. Compiled once, in pairwise.cu and pairwise_gradient.cu.
#pragma once

#include "engine/gradient_walk.cuh"
#include "pairwise_pairs.cuh"

namespace dmlfast::cuda {

void launch_distance_walk(const PairwiseWalk& pairs, bool is_split, float* distance,
                          int shared_bytes, cudaStream_t stream);

// Distances and upstream gradients by row and column of a walk.
struct DistanceGradient {
  PairMatrix distance;
  PairMatrix grad;
  bool within_batch;  // and symmetric: a pair's gradient is that of both its orders
  uint8_t* lost;      // by row: becomes 1 where a distance of a pair is NaN, and its gradient not 0
};

// The weighted sums of the rows of a walk; there are some.
void launch_distance_gradient_walk(const PairwiseWalk& pairs, const DistanceGradient& gradient,
                                   bool is_split, const GradientSums& sums, int shared_bytes,
                                   cudaStream_t stream);

inline GradientTask gradient_task(const PairwiseWalk& pairs, const GradientSums& sums) {
  return {pairs.walk, pairs.distances, sums};
}

__host__ __device__ inline PairMatrix transposed(const PairMatrix& matrix) {
  return {matrix.data, matrix.column_stride, matrix.row_stride};
}

// The same with anchors and references exchanged, of distances that are not symmetric.
inline DistanceGradient exchanged(const DistanceGradient& of, uint8_t* lost) {
  return {transposed(of.distance), transposed(of.grad), false, lost};
}

}  // namespace dmlfast::cuda
