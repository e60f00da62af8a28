// Upstream gradients of float32 walks.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/matrix.h"

namespace dmlfast::cpu {

// A 1-D tensor of any floating dtype and stride.
inline std::vector<double> read_column(const torch::stable::Tensor& tensor) {
  std::vector<double> values(tensor.size(0));
  const Matrix column(tensor, Matrix::Column{});
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    column.read_row(i, &values[i]);
  }
  return values;
}

// The power of two next to the greatest of the finite values, 1 where all are 0: relative to it
// float32 weights keep clear of the ends of their range.
inline double common_divisor(const std::vector<double>& a, const std::vector<double>& b) {
  double greatest = 0.0;
  for (const std::vector<double>* values : {&a, &b}) {
    for (double value : *values) {
      greatest = std::isfinite(value) ? std::max(greatest, std::abs(value)) : greatest;
    }
  }
  return greatest == 0.0 ? 1.0 : std::exp2(std::ilogb(greatest));
}

}  // namespace dmlfast::cpu
