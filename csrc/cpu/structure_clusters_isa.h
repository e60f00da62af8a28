// The clusters of the family `structure`, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/span.h"
#include "engine/walk_task.h"

namespace dmlfast::cpu {

// Every distance D is shared among clusters, c_k = softmax over k of -sharpness |D - target_k|.
// Units are those of the packed rows; arrays by anchor position are padded to whole panels.
struct ClusterTask {
  WalkTask walk;
  const float* targets;  // [cluster]
  int64_t clusters;
  float sharpness;
  // Per anchor the sums of c_k |D - target_k|, and by cluster those of c_k and of c_k D, null
  // unless wanted.
  double* losses;   // [anchor]
  double* masses;   // [anchor][cluster]
  double* moments;  // [anchor][cluster]
  // For the gradient: what the sums are multiplied by, the latter two null unless wanted.
  const float* loss_weights;
  const float* mass_weights;
  const float* moment_weights;
};

// Adds the pairs of two spans of panels to the sums, or their gradient where that is wanted.
using ClusterFunction = void (*)(const ClusterTask&, Span x, Span y);

namespace baseline {
void structure_clusters(const ClusterTask& task, Span x, Span y);
}
namespace avx2 {
void structure_clusters(const ClusterTask& task, Span x, Span y);
}
namespace avx512 {
void structure_clusters(const ClusterTask& task, Span x, Span y);
}

}  // namespace dmlfast::cpu
