#include "engine/gradient_matrix.h"

#include <algorithm>

#include "engine/search_rows.h"

namespace dmlfast::cpu {

GradientMatrix::GradientMatrix(const SearchMatrix& packed) : packed_(packed) {
  const SearchRows& from = packed.view();
  const int64_t padded = from.panel_count * kSearchPanelRows;
  const int64_t stride =
      (from.dimensions + kSearchPanelRows - 1) / kSearchPanelRows * kSearchPanelRows;
  rows_.reset(new float[padded * stride]);
  sums_.reset(new float[padded * stride]);
  own_.assign(padded, 0.0);
  view_ = {rows_.get(), sums_.get(), own_.data(), stride};
  torch::stable::parallel_for(0, from.panel_count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* elements = search_panel_of(from, panel);
      for (int64_t r = 0; r < kSearchPanelRows; ++r) {
        float* row = rows_.get() + (panel * kSearchPanelRows + r) * stride;
        for (int64_t k = 0; k < from.dimensions; ++k) {
          row[k] = elements[k * kSearchPanelRows + r];
        }
        std::fill(row + from.dimensions, row + stride, 0.0f);
      }
      float* sums = sums_.get() + panel * kSearchPanelRows * stride;
      std::fill(sums, sums + kSearchPanelRows * stride, 0.0f);
    }
  });
}

void GradientMatrix::read(int64_t position, Metric metric, double factor,
                          std::vector<double>& row) const {
  const float* own = view_.rows + position * view_.stride;
  const float* sums = view_.sums + position * view_.stride;
  double along = 0.0;  // what the row itself is to be multiplied by and subtracted
  if (sums_differences(metric)) {
    along = view_.own[position];
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
