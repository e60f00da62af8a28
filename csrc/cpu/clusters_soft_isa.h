// The soft assignment of the family `clusters`, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/span.h"
#include "engine/walk_task.h"

namespace dmlfast::cpu {

// Every anchor is shared among the centres of its class, p = softmax of -sharpness * distance.
// Units are those of the packed rows; arrays by anchor position are padded to whole panels.
struct SoftTask {
  WalkTask walk;
  const int64_t* class_begin;  // [anchor] positions in y of the anchor's class
  const int64_t* class_end;
  float sharpness;
  // Per anchor the least distance so far, +inf at the start, and relative to it the sums of the
  // powers exp(-sharpness * excess), and of power * excess.
  float* least;
  double* masses;
  double* moments;
  // For the gradient: the least distance, the logarithm of the mass relative to it, the mean
  // distance as a sum of two, as sharpness magnifies what one rounds off, and what the soft minimum
  // and the mean are multiplied by.
  const float* leasts;
  const float* log_masses;
  const float* means;
  const float* low_means;
  const float* minimum_weights;
  const float* mean_weights;
};

// What sums become when the least distance falls, and with it every power by a factor. Compiled
// once, for float64 arithmetic is the same at every level.
void lower_least(float fall, float factor, double* mass, double* moment);

// Adds the pairs of two spans of panels to the sums, or their gradient where that is wanted.
using SoftFunction = void (*)(const SoftTask&, Span x, Span y);

namespace baseline {
void clusters_soft(const SoftTask& task, Span x, Span y);
}
namespace avx2 {
void clusters_soft(const SoftTask& task, Span x, Span y);
}
namespace avx512 {
void clusters_soft(const SoftTask& task, Span x, Span y);
}

}  // namespace dmlfast::cpu
