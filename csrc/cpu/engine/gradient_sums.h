// Rows as a walk adds them up, and the sums of their partners' multiples.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/gradient_rows.h"
#include "engine/search_rows.h"

namespace dmlfast::cpu {

// Holds packed rows once more, row by row, and the sums: 8 * rows * dimensions bytes where these
// are a multiple of 16.
class GradientSums {
 public:
  explicit GradientSums(const SearchRows& from);

  const GradientRows& view() const { return view_; }

  // Whether a weight of NaN has entered the sum of the row at a position.
  bool has_nan(int64_t position) const {
    return view_.stride > 0 && std::isnan(view_.sums[position * view_.stride]);
  }

 private:
  std::unique_ptr<float[]> rows_;
  std::unique_ptr<float[]> sums_;
  std::vector<double> own_;
  GradientRows view_;
};

}  // namespace dmlfast::cpu
