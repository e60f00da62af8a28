// The sum that every exact comparison rests on.
#pragma once

#include <cstddef>
#include <vector>

#include "metric.h"

namespace dmlfast::cpu {

// The float64 sum over the dimensions in ascending order of squared differences or of products.
inline double exact_sum(Metric metric, const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0.0;
  if (sums_differences(metric)) {
    for (size_t k = 0; k < x.size(); ++k) {
      const double difference = x[k] - y[k];
      sum += difference * difference;
    }
  } else {
    for (size_t k = 0; k < x.size(); ++k) {
      sum += x[k] * y[k];
    }
  }
  return sum;
}

}  // namespace dmlfast::cpu
