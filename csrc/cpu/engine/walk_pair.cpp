#include "engine/walk_pair.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/self_positions.h"

namespace dmlfast::cpu {

WalkPair::WalkPair(const LabelledRows& anchors, const LabelledRows& references, bool is_symmetric,
                   const int64_t* self_index, Metric metric)
    : pair_(anchors, references, metric), is_symmetric_(is_symmetric) {
  pair_.pack(false);
  const int64_t padded = x().view().panel_count * kSearchPanelRows;
  if (is_symmetric) {
    self_.resize(padded);
    std::iota(self_.begin(), self_.end(), 0);
  } else {
    self_ = self_positions(anchors, references, self_index, padded);
  }
  find_classes();
}

void WalkPair::find_classes() {
  const SearchRows& x = this->x().view();
  const SearchRows& y = this->y().view();
  class_begin_.assign(self_.size(), y.rows);
  class_end_.assign(self_.size(), y.rows);
  int64_t begin = 0;
  int64_t end = 0;
  for (int64_t i = 0; i < x.rows; ++i) {
    while (begin < y.rows && y.labels[begin] < x.labels[i]) {
      ++begin;
    }
    end = std::max(begin, end);
    while (end < y.rows && y.labels[end] == x.labels[i]) {
      ++end;
    }
    class_begin_[i] = begin;
    class_end_[i] = end;
  }
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
                              this,
                              &WalkPair::squares,
                              &WalkPair::add_difference};
  return {x().view(), y().view(), is_symmetric(), distance, self_.data(), x_gradient, y_gradient};
}

double WalkPair::squares(const void* pair, int64_t x, int64_t y) {
  const auto& self = *static_cast<const WalkPair*>(pair);
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  row.resize(self.anchors().rows.columns());
  other.resize(row.size());
  self.anchors().rows.read_row(self.anchors().order[x], row.data());
  self.references().rows.read_row(self.references().order[y], other.data());
  double sum = 0.0;
  for (size_t k = 0; k < row.size(); ++k) {
    sum += (row[k] - other[k]) * (row[k] - other[k]);
  }
  return sum * self.scale() * self.scale();
}

void WalkPair::add_difference(const void* pair, int64_t x, int64_t y, float weight, float* x_sums,
                              float* y_sums) {
  const auto& self = *static_cast<const WalkPair*>(pair);
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  row.resize(self.anchors().rows.columns());
  other.resize(row.size());
  self.anchors().rows.read_row(self.anchors().order[x], row.data());
  self.references().rows.read_row(self.references().order[y], other.data());
  const double factor = static_cast<double>(weight) * self.scale();
  for (size_t k = 0; k < row.size(); ++k) {
    const auto change = static_cast<float>(factor * (other[k] - row[k]));
    x_sums[k] += change;
    if (y_sums != nullptr) {
      y_sums[k] -= change;
    }
  }
}

}  // namespace dmlfast::cpu
