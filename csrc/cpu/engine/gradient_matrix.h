// The gradient of packed rows, summed over partners.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "engine/gradient_sums.h"
#include "engine/labelled_rows.h"
#include "engine/search_pack.h"
#include "metric.h"

namespace dmlfast::cpu {

class GradientMatrix : public GradientSums {
 public:
  explicit GradientMatrix(const SearchMatrix& packed)
      : GradientSums(packed.view()), packed_(packed) {}

  // Rounds the gradients, times `factor`, into a contiguous tensor in the order of the matrix. That
  // of a row at a position where is_lost(position) is NaN, that of others that are not finite 0.
  template <class IsLost>
  void write(const LabelledRows& matrix, Metric metric, double factor, const IsLost& is_lost,
             torch::stable::Tensor& gradient) const {
    torch::stable::parallel_for(0, packed_.rows(), 64, [&](int64_t begin, int64_t end) {
      std::vector<double> row(matrix.rows.columns());
      for (int64_t position = begin; position < end; ++position) {
        const int64_t index = matrix.order[position];
        if (is_lost(position)) {
          row.assign(row.size(), std::numeric_limits<double>::quiet_NaN());
        } else if (packed_.is_finite(position)) {
          read(position, metric, factor, row);
        } else {
          row.assign(row.size(), 0.0);
        }
        write_row(gradient, index, row.data());
      }
    });
  }

 private:
  void read(int64_t position, Metric metric, double factor, std::vector<double>& row) const;

  const SearchMatrix& packed_;
};

}  // namespace dmlfast::cpu
