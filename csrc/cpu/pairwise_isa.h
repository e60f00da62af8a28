// The family `pairwise`, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/span.h"
#include "engine/walk_task.h"

namespace dmlfast::cpu {

// Writes distances, those of near pairs as they come, or, with a gradient, weighs them. The rows
// of the matrices are in label order where that is their own order: there are no labels.
struct DistanceTask {
  WalkTask walk;
  // The distance that a packed distance of 1 is, and the inverse, each as two factors: their
  // product may lie outside the range of float32.
  float unit_high;
  float unit_low;
  float packed_high;
  float packed_low;
  float* distances;  // [x][y]; read for a gradient
  int64_t columns;
  // For a gradient: upstream, rows and columns any number of elements apart.
  const float* upstream;
  int64_t row_step;
  int64_t column_step;
};

// Per anchor the sums of (distance - centre) and of its square, or their gradient.
struct MomentTask {
  WalkTask walk;
  float centre;   // in the unit of the packed rows
  double* first;  // [anchor position]
  double* second;
  const float* first_weights;  // [anchor position], for a gradient; padded to whole panels
  const float* second_weights;
};

using DistanceFunction = void (*)(const DistanceTask& task, Span x, Span y);
using MomentFunction = void (*)(const MomentTask& task, Span x, Span y);

namespace baseline {
void pairwise_distances(const DistanceTask& task, Span x, Span y);
void pairwise_moments(const MomentTask& task, Span x, Span y);
}  // namespace baseline
namespace avx2 {
void pairwise_distances(const DistanceTask& task, Span x, Span y);
void pairwise_moments(const MomentTask& task, Span x, Span y);
}  // namespace avx2
namespace avx512 {
void pairwise_distances(const DistanceTask& task, Span x, Span y);
void pairwise_moments(const MomentTask& task, Span x, Span y);
}  // namespace avx512

}  // namespace dmlfast::cpu
