// Rows in label order and the sums that make up their gradient.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

// The gradient of a row is the weighted sum of its partners, under the Euclidean metrics less the
// row times the sum of the weights.
struct GradientRows {
  const float* rows;  // [position][stride]; 0 past the dimensions
  float* sums;        // [position][stride]
  double* own;        // [position] sums of weights
  int64_t stride;     // a multiple of kSearchPanelRows
};

}  // namespace dmlfast::cpu
