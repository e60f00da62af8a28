// Labelled anchors and references of a dtype that kernels learn when they run.
#pragma once

#include "engine/matrix.h"
#include "metric.h"

namespace dmlfast::cuda {

// Indices fit 32 bits.
struct LabelledPairs {
  AnyRows x;
  AnyRows references;
  const int64_t* labels;            // (N,)
  const int64_t* order;             // (N,) sorts the labels
  const int64_t* reference_labels;  // (M,)
  const int64_t* reference_order;   // (M,) sorts the reference labels
  const int64_t* self_index;        // (N,) or null
  Metric metric;
  double* norms_x;           // (N,) workspace
  double* norms_references;  // (M,) workspace
  void* distance;            // float, or double where x is double
  int64_t* index;
};

}  // namespace dmlfast::cuda
