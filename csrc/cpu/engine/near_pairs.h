// Distances of packed rows from their products, and the pairs for which these are not enough.
#pragma once

#include <cstdint>

#include "metric.h"

namespace dmlfast::cpu {

// Squared distances below this share of |x|^2 + |y|^2 have lost too many digits in the subtraction:
// they are computed again from the rows as they were given.
constexpr float kNearShare = 1e-3f;

// How the product of two packed rows becomes their distance, in the unit of the packed rows:
// addend[i] + addend[j] - factor * product, and its root under the Euclidean metric.
struct PairDistance {
  bool sums_differences;
  bool has_root;
  float factor;
  float constant;  // added once: 1 for cosine
  // Of the rows at two positions, from the values as they were given.
  const void* rows;
  double (*squares)(const void* rows, int64_t x, int64_t y);
  // Adds weight * (y - x) to the sums of the row at x, and its negative to those of y, if wanted.
  void (*add_difference)(const void* rows, int64_t x, int64_t y, float weight, float* x_sums,
                         float* y_sums);
};

}  // namespace dmlfast::cpu
