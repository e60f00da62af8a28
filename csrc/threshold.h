// "Strictly beyond": the returned, rounded distance is greater than a threshold. The search
// compares unrounded values, so the threshold is turned into the least value that is beyond it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "metric.h"

namespace dmlfast {

// Doubles in ascending order, as integers in ascending order.
DMLFAST_INLINE int64_t ordinal_of(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits < 0 ? INT64_MIN - bits : bits;
}

DMLFAST_INLINE double of_ordinal(int64_t ordinal) {
  const int64_t bits = ordinal < 0 ? INT64_MIN - ordinal : ordinal;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DMLFAST_INLINE double returned_distance(Metric metric, double value, bool returns_double) {
  const double distance = distance_of(metric, value);
  return returns_double ? distance : static_cast<double>(static_cast<float>(distance));
}

// The least value whose returned distance is greater than `beyond`; NaN where there is none.
DMLFAST_INLINE double least_value_beyond(Metric metric, double beyond, bool returns_double) {
  // The returned distance does not decrease with the value, so bisection over all doubles finds
  // the step. Under the Euclidean metrics no value is negative.
  double low = sums_differences(metric) ? 0.0 : -INFINITY;
  if (!(returned_distance(metric, INFINITY, returns_double) > beyond)) {
    return NAN;
  }
  if (returned_distance(metric, low, returns_double) > beyond) {
    return -INFINITY;
  }
  double high = INFINITY;
  if (metric == Metric::euclidean) {
    // Most often the step is near the threshold's square: half the bisections.
    const double near_low = beyond * beyond * (1.0 - 0x1p-20);
    const double near_high = beyond * beyond * (1.0 + 0x1p-20);
    low = returned_distance(metric, near_low, returns_double) > beyond ? low : near_low;
    high = returned_distance(metric, near_high, returns_double) > beyond ? near_high : high;
  }
  int64_t not_beyond = ordinal_of(low);
  int64_t is_beyond = ordinal_of(high);
  for (;;) {
    // Unsigned: the distance between the infinities does not fit an int64.
    const uint64_t gap = static_cast<uint64_t>(is_beyond) - static_cast<uint64_t>(not_beyond);
    if (gap <= 1) {
      return of_ordinal(is_beyond);
    }
    const int64_t middle = not_beyond + static_cast<int64_t>(gap / 2);
    if (returned_distance(metric, of_ordinal(middle), returns_double) > beyond) {
      is_beyond = middle;
    } else {
      not_beyond = middle;
    }
  }
}

}  // namespace dmlfast
