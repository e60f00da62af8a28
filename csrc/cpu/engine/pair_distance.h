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
  float constant;   // added once: 1 for cosine
  float least_sum;  // pairs with |x|^2 + |y|^2 below it are computed again, too
  // For the row at x and those at first + column, for each of `count` columns, from the values as
  // they were given: writes distances to values[column], in a unit that is a number of that of the
  // rows. Beside rows far longer that of the packed distances may leave nothing of them: then a
  // policy that knows what to do with them asks for another.
  const void* rows;
  double near_unit;
  void (*distances)(const void* rows, double unit, int64_t x, int64_t first, const int32_t* columns,
                    int64_t count, float* values);
  // Adds weights[column] * (y - x) to the sums of x, and its negative to those of y, if wanted.
  void (*add_differences)(const void* rows, int64_t x, int64_t first, const int32_t* columns,
                          int64_t count, const float* weights, float* x_sums, float* y_sums,
                          int64_t stride);
};

}  // namespace dmlfast::cpu
