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

double WalkPair::sum(int64_t x, int64_t y) const {
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  row.resize(anchors().rows.columns());
  other.resize(row.size());
  anchors().rows.read_row(anchors().order[x], row.data());
  references().rows.read_row(references().order[y], other.data());
  double sum = 0.0;
  if (sums_differences(metric())) {
    for (size_t k = 0; k < row.size(); ++k) {
      sum += (row[k] - other[k]) * (row[k] - other[k]);
    }
  } else {
    for (size_t k = 0; k < row.size(); ++k) {
      sum += row[k] * other[k];
    }
  }
  return sum;
}

double WalkPair::exact_value(int64_t x, int64_t y) const {
  const bool is_cosine = metric() == Metric::cosine;
  return value_of(metric(), sum(x, y), is_cosine ? this->x().own_norm(x) : 0.0,
                  is_cosine ? this->y().own_norm(y) : 0.0);
}

double WalkPair::squares(const void* pair, int64_t x, int64_t y) {
  const auto& self = *static_cast<const WalkPair*>(pair);
  return self.sum(x, y) * self.scale() * self.scale();
}

void WalkPair::add_pair(int64_t x, int64_t y, double derivative, double distance,
                        const GradientRows& x_gradient, const GradientRows& y_gradient) const {
  float* x_sums = x_gradient.sums + x * x_gradient.stride;
  float* y_sums = y_gradient.sums + y * y_gradient.stride;
  if (sums_differences(metric())) {
    const double weight = metric() == Metric::sqeuclidean ? -2.0 * derivative
                          : distance > 0.0                ? -derivative / distance
                                                          : 0.0;
    add_difference(this, x, y, static_cast<float>(weight), x_sums, y_sums);
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
