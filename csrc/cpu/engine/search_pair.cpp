#include "engine/search_pair.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/self_positions.h"

namespace dmlfast::cpu {

SearchPair::SearchPair(const LabelledRows& anchors, const LabelledRows& references,
                       bool is_symmetric, const int64_t* self_index, Metric metric)
    : anchors_(anchors),
      references_(references),
      metric_(metric),
      centre_(search_centre(references.rows, metric)),
      y_(references_, centre_, metric) {
  if (!is_symmetric) {
    x_ = std::make_unique<SearchMatrix>(anchors_, centre_, metric);
  }
  // A power of two: exact, and it keeps products far from the ends of float32's range.
  const double greatest = std::max(x().greatest_norm(), y_.greatest_norm());
  if (metric != Metric::cosine && greatest > 0.0) {
    scale_ = std::exp2(-std::ilogb(greatest));
  }
  y_.pack(scale_, false);
  if (x_) {
    x_->pack(scale_, false);
  }
  const int64_t padded = x().view().panel_count * kSearchPanelRows;
  if (is_symmetric) {
    self_.resize(padded);
    std::iota(self_.begin(), self_.end(), 0);
  } else {
    self_ = self_positions(anchors_, references_, self_index, padded);
  }
  find_classes();
}

void SearchPair::find_classes() {
  const SearchRows& x = this->x().view();
  const SearchRows& y = y_.view();
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

double SearchPair::unit() const {
  if (metric_ == Metric::euclidean) {
    return 1.0 / scale_;
  }
  return metric_ == Metric::cosine ? 1.0 : 1.0 / (scale_ * scale_);
}

Range SearchPair::distance_range() const {
  const double norm_x = x().greatest_packed_norm();
  const double norm_y = y_.greatest_packed_norm();
  switch (metric_) {
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

WalkTask SearchPair::task(const GradientRows* x_gradient, const GradientRows* y_gradient) const {
  const PairDistance distance{sums_differences(metric_),
                              metric_ == Metric::euclidean,
                              sums_differences(metric_) ? 2.0f : 1.0f,
                              metric_ == Metric::cosine ? 1.0f : 0.0f,
                              this,
                              &SearchPair::squares,
                              &SearchPair::add_difference};
  return {x().view(), y_.view(), is_symmetric(), distance, self_.data(), x_gradient, y_gradient};
}

double SearchPair::squares(const void* pair, int64_t x, int64_t y) {
  const auto& self = *static_cast<const SearchPair*>(pair);
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  row.resize(self.anchors_.rows.columns());
  other.resize(row.size());
  self.anchors_.rows.read_row(self.anchors_.order[x], row.data());
  self.references_.rows.read_row(self.references_.order[y], other.data());
  double sum = 0.0;
  for (size_t k = 0; k < row.size(); ++k) {
    sum += (row[k] - other[k]) * (row[k] - other[k]);
  }
  return sum * self.scale_ * self.scale_;
}

void SearchPair::add_difference(const void* pair, int64_t x, int64_t y, float weight, float* x_sums,
                                float* y_sums) {
  const auto& self = *static_cast<const SearchPair*>(pair);
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  row.resize(self.anchors_.rows.columns());
  other.resize(row.size());
  self.anchors_.rows.read_row(self.anchors_.order[x], row.data());
  self.references_.rows.read_row(self.references_.order[y], other.data());
  const double factor = static_cast<double>(weight) * self.scale_;
  for (size_t k = 0; k < row.size(); ++k) {
    const auto change = static_cast<float>(factor * (other[k] - row[k]));
    x_sums[k] += change;
    if (y_sums != nullptr) {
      y_sums[k] -= change;
    }
  }
}

}  // namespace dmlfast::cpu
