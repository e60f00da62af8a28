// The gradient of a distance with respect to one of its two rows, summed over partners.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "engine/matrix.h"
#include "metric.h"

namespace dmlfast::cpu {

// Adds up weight * d distance(row, partner) / d row in float64, in the order of the calls. All
// four metrics are symmetric, so the same class serves anchors and references.
class RowGradient {
 public:
  RowGradient(Metric metric, const Matrix& rows, const Matrix& partners);

  void start(int64_t row);

  // A partner of -1 (none) adds nothing, unless the row is not finite: then the gradient is NaN,
  // so that a gradient scaler notices. A weight of 0 adds nothing.
  void add(int64_t partner, double weight);

  // Rounds the sum into the row of a contiguous tensor shaped like the rows.
  void write(torch::stable::Tensor& gradient) const;

 private:
  void add_difference(double weight);
  void add_cosine(double weight);

  Metric metric_;
  const Matrix& rows_;
  const Matrix& partners_;
  int64_t row_ = 0;
  std::vector<double> x_;
  std::vector<double> y_;
  std::vector<double> sum_;
};

}  // namespace dmlfast::cpu
