#include "engine/gradient_sums.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace dmlfast::cpu {

GradientSums::GradientSums(const SearchRows& from) {
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

}  // namespace dmlfast::cpu
