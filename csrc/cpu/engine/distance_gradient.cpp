#include "engine/distance_gradient.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dmlfast::cpu {

RowGradient::RowGradient(Metric metric, const Matrix& rows, const Matrix& partners)
    : metric_(metric),
      rows_(rows),
      partners_(partners),
      x_(rows.columns()),
      y_(rows.columns()),
      sum_(rows.columns()) {}

void RowGradient::start(int64_t row) {
  row_ = row;
  rows_.read_row(row, x_.data());
  std::fill(sum_.begin(), sum_.end(), 0.0);
}

void RowGradient::add(int64_t partner, double weight) {
  if (weight == 0.0) {
    return;
  }
  if (partner < 0) {
    const bool finite =
        std::all_of(x_.begin(), x_.end(), [](double element) { return std::isfinite(element); });
    if (!finite) {
      std::fill(sum_.begin(), sum_.end(), std::numeric_limits<double>::quiet_NaN());
    }
    return;
  }
  partners_.read_row(partner, y_.data());
  switch (metric_) {
    case Metric::euclidean:
    case Metric::sqeuclidean:
      return add_difference(weight);
    case Metric::cosine:
      return add_cosine(weight);
    case Metric::dot:
      for (size_t k = 0; k < x_.size(); ++k) {
        sum_[k] -= weight * y_[k];
      }
  }
}

void RowGradient::add_difference(double weight) {
  double scale = 2.0 * weight;
  if (metric_ == Metric::euclidean) {
    double squares = 0.0;
    for (size_t k = 0; k < x_.size(); ++k) {
      const double difference = x_[k] - y_[k];
      squares += difference * difference;
    }
    if (squares == 0.0) {
      return;
    }
    scale = weight / std::sqrt(squares);
  }
  for (size_t k = 0; k < x_.size(); ++k) {
    sum_[k] += scale * (x_[k] - y_[k]);
  }
}

void RowGradient::add_cosine(double weight) {
  double xx = 0.0;
  double yy = 0.0;
  double xy = 0.0;
  for (size_t k = 0; k < x_.size(); ++k) {
    xx += x_[k] * x_[k];
    yy += y_[k] * y_[k];
    xy += x_[k] * y_[k];
  }
  const double norm_x = std::sqrt(xx);
  const double norms = norm_x * std::sqrt(yy);
  if (norms == 0.0) {
    return;
  }
  const double cosine = xy / norms;
  for (size_t k = 0; k < x_.size(); ++k) {
    sum_[k] -= weight * (y_[k] / norms - cosine * (x_[k] / norm_x) / norm_x);
  }
}

void RowGradient::write(torch::stable::Tensor& gradient) const {
  write_row(gradient, row_, sum_.data());
}

}  // namespace dmlfast::cpu
