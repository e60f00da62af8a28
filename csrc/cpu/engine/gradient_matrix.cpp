#include "engine/gradient_matrix.h"

namespace dmlfast::cpu {

void GradientMatrix::read(int64_t position, Metric metric, double factor,
                          std::vector<double>& row) const {
  const float* own = view().rows + position * view().stride;
  const float* sums = view().sums + position * view().stride;
  double along = 0.0;  // what the row itself is to be multiplied by and subtracted
  if (sums_differences(metric)) {
    along = view().own[position];
  } else if (metric == Metric::cosine) {
    for (size_t k = 0; k < row.size(); ++k) {
      along += static_cast<double>(sums[k]) * static_cast<double>(own[k]);
    }
    const double norm = packed_.own_norm(position);
    factor = norm == 0.0 ? 0.0 : factor / norm;
  }
  for (size_t k = 0; k < row.size(); ++k) {
    row[k] = factor * (static_cast<double>(sums[k]) - along * static_cast<double>(own[k]));
  }
}

}  // namespace dmlfast::cpu
