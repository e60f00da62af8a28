#include "engine/walk_pair.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/class_ranges.h"
#include "engine/exact_value.h"
#include "engine/self_positions.h"

namespace dmlfast::cpu {

namespace {

// Keeps the squares of units, and bounds in such units, inside the range of float32.
constexpr double kGreatestScale = 0x1p60;

// Squares of rows this short, beside the greatest, come close to the end of float32's range.
constexpr double kLeastPackedNorm = 1e-15;

}  // namespace

WalkPair::WalkPair(const LabelledRows& anchors, const LabelledRows& references, bool is_symmetric,
                   const int64_t* self_index, Metric metric, double length)
    : pair_(anchors, references, metric, false, length, kGreatestScale),
      is_symmetric_(is_symmetric) {
  pair_.pack(false);
  const int64_t padded = x().view().panel_count * kSearchPanelRows;
  if (is_symmetric) {
    self_.resize(padded);
    std::iota(self_.begin(), self_.end(), 0);
  } else {
    self_ = self_positions(anchors, references, self_index, padded);
  }
  class_begin_.assign(padded, references.rows.rows());
  class_end_.assign(padded, references.rows.rows());
  for_class_ranges(anchors, references, [&](int64_t i, int64_t begin, int64_t end) {
    class_begin_[i] = begin;
    class_end_[i] = end;
  });
}

double WalkPair::unit() const {
  if (metric() == Metric::euclidean) {
    return 1.0 / scale();
  }
  return metric() == Metric::cosine ? 1.0 : 1.0 / (scale() * scale());
}

Range WalkPair::distance_range() const {
  const double norm_x = x().greatest_packed_norm();
  const double norm_y = y().greatest_packed_norm();
  switch (metric()) {
    case Metric::euclidean:
      return {0.0, norm_x + norm_y};
    case Metric::sqeuclidean:
      return {0.0, (norm_x + norm_y) * (norm_x + norm_y)};
    case Metric::cosine:
      return {0.0, 2.0};
    default:
      return {-norm_x * norm_y, norm_x * norm_y};
  }
}

WalkTask WalkPair::task(const GradientRows* x_gradient, const GradientRows* y_gradient) const {
  const PairDistance distance{sums_differences(metric()),
                              metric() == Metric::euclidean,
                              sums_differences(metric()) ? 2.0f : 1.0f,
                              metric() == Metric::cosine ? 1.0f : 0.0f,
                              least_sum(),
                              this,
                              unit(),
                              &WalkPair::distances,
                              &WalkPair::add_differences};
  return {x().view(), y().view(), is_symmetric(), distance, self_.data(), x_gradient, y_gradient};
}

float WalkPair::least_sum() const {
  const double least = std::min(x().least_norm(), y().least_norm()) * scale();
  return least < kLeastPackedNorm ? static_cast<float>(kLeastPackedNorm * kLeastPackedNorm) : 0.0f;
}

std::vector<double>& WalkPair::read(const LabelledRows& matrix, int64_t position,
                                    std::vector<double>& row) {
  row.resize(matrix.rows.columns());
  matrix.rows.read_row(matrix.order[position], row.data());
  return row;
}

double WalkPair::exact_value(int64_t x, int64_t y) const {
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  const bool is_cosine = metric() == Metric::cosine;
  return value_of(metric(),
                  exact_sum(metric(), read(anchors(), x, row), read(references(), y, other)),
                  is_cosine ? this->x().own_norm(x) : 0.0, is_cosine ? this->y().own_norm(y) : 0.0);
}

void WalkPair::distances(const void* pair, double unit, int64_t x, int64_t first,
                         const int32_t* columns, int64_t count, float* values) {
  const auto& self = *static_cast<const WalkPair*>(pair);
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  read(self.anchors(), x, row);
  for (int64_t n = 0; n < count; ++n) {
    read(self.references(), first + columns[n], other);
    values[columns[n]] =
        static_cast<float>(distance_of(self.metric(), exact_sum(self.metric(), row, other)) / unit);
  }
}

void WalkPair::add_pair(int64_t x, int64_t y, double derivative, double distance,
                        const GradientRows& x_gradient, const GradientRows& y_gradient) const {
  float* x_sums = x_gradient.sums + x * x_gradient.stride;
  float* y_sums = y_gradient.sums + y * y_gradient.stride;
  if (sums_differences(metric())) {
    const double weight = metric() == Metric::sqeuclidean ? -2.0 * derivative
                          : distance > 0.0                ? -derivative / distance
                                                          : 0.0;
    const int32_t column = 0;
    const auto rounded = static_cast<float>(weight);
    add_differences(this, x, y, &column, 1, &rounded, x_sums, y_sums, y_gradient.stride);
    return;
  }
  const float* x_row = x_gradient.rows + x * x_gradient.stride;
  const float* y_row = y_gradient.rows + y * y_gradient.stride;
  const auto weight = static_cast<float>(-derivative);
  for (int64_t k = 0; k < x_gradient.stride; ++k) {
    x_sums[k] += weight * y_row[k];
    y_sums[k] += weight * x_row[k];
  }
}

void WalkPair::add_differences(const void* pair, int64_t x, int64_t first, const int32_t* columns,
                               int64_t count, const float* weights, float* x_sums, float* y_sums,
                               int64_t stride) {
  const auto& self = *static_cast<const WalkPair*>(pair);
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  read(self.anchors(), x, row);
  for (int64_t n = 0; n < count; ++n) {
    const double factor = static_cast<double>(weights[columns[n]]) * self.scale();
    if (factor == 0.0) {
      continue;
    }
    read(self.references(), first + columns[n], other);
    float* others = y_sums == nullptr ? nullptr : y_sums + columns[n] * stride;
    for (size_t k = 0; k < row.size(); ++k) {
      const auto change = static_cast<float>(factor * (other[k] - row[k]));
      x_sums[k] += change;
      if (others != nullptr) {
        others[k] -= change;
      }
    }
  }
}

}  // namespace dmlfast::cpu
