#include "engine/search_pair.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dmlfast::cpu {

namespace {

constexpr double kUnit = 0x1p-24;        // relative rounding error of float32
constexpr double kDoubleUnit = 0x1p-53;  // that of float64
constexpr double kUnderflow = 0x1p-124;  // four times what a flushed element or product loses

// The error bound counts on float64 products of rows this long to be normal numbers.
constexpr double kLeastNorm = 1e-140;

}  // namespace

SearchPair::SearchPair(const LabelledRows& anchors, const LabelledRows& references, Metric metric,
                       bool same_class, double length, double greatest_scale)
    : anchors_(anchors),
      references_(references),
      metric_(metric),
      centres_(references, metric, same_class),
      y_(references_, centres_, metric) {
  if (!anchors.is(references)) {
    x_.emplace(anchors_, centres_, metric);
  }
  const double greatest = std::max(x().greatest_norm(), y_.greatest_norm());
  if (metric != Metric::cosine && greatest > 0.0) {
    scale_ = std::min(greatest_scale, length * std::exp2(-std::ilogb(greatest)));
  }
}

bool SearchPair::is_searchable() const {
  const double least = metric_ == Metric::cosine
                           ? std::min(x().least_norm(), y_.least_norm())
                           : std::max(x().greatest_norm(), y_.greatest_norm());
  const bool is_normal = least == 0.0 || least > kLeastNorm;
  return is_normal && !x().has_infinite() && !y_.has_infinite();
}

void SearchPair::pack(bool negated) {
  y_.pack(scale_, negated);
  if (x_) {
    x_->pack(scale_, negated);
  }
}

// The key of a pair is the scaled value minus a part that only the anchor decides. Its error has
// three sources: the elements' rounding (2 units of |x||y|), the sum (a chain of 16 and then the
// chains), and the rounding of addend and key. One unit in sixteen is spare, far more than the
// float64 roundings need; but for those of squared differences, which the values that are compared
// have, too: beside a much longer anchor the keys are small, and they are not.
double SearchPair::error_of(double norm) const {
  const double dimensions = static_cast<double>(references_.rows.columns());
  const double chains = std::ceil(dimensions / kSearchChain);
  const double factor = sums_differences(metric_) ? 2.0 : 1.0;
  const double greatest = y_.greatest_packed_norm();
  const double products = factor * norm * greatest;
  const double key = products + (factor == 2.0 ? greatest * greatest : 0.0);
  const double sum = factor == 2.0 ? norm + greatest : 0.0;
  return 1.0625 * kUnit * ((kSearchChain + chains + 4.0) * products + 3.0 * key) +
         4.0 * (dimensions + 8.0) * kDoubleUnit * sum * sum + kUnderflow * dimensions;
}

float rounded_down(double value) {
  const float rounded = static_cast<float>(value);
  return static_cast<double>(rounded) <= value
             ? rounded
             : std::nextafter(rounded, -std::numeric_limits<float>::infinity());
}

float rounded_up(double value) { return -rounded_down(-value); }

}  // namespace dmlfast::cpu
