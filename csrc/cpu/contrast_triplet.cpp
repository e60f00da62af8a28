#include "contrast_triplet.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "metric_name.h"
#include "threshold.h"

namespace dmlfast::cpu {

TripletOptions triplet_options(const std::string& metric, const std::string& positives,
                               const std::string& negatives, double margin, bool returns_double) {
  TripletOptions options{metric_of(metric), Positives::all, Negatives::all, margin, returns_double};
  STD_TORCH_CHECK(positives == "all" || positives == "nearest" || positives == "farthest",
                  "positives: expected 'all', 'nearest' or 'farthest', got '", positives, "'");
  STD_TORCH_CHECK(negatives == "all" || negatives == "hardest" || negatives == "semihard",
                  "negatives: expected 'all', 'hardest' or 'semihard', got '", negatives, "'");
  if (positives != "all") {
    options.positives = positives == "nearest" ? Positives::nearest : Positives::farthest;
  }
  if (negatives != "all") {
    options.negatives = negatives == "hardest" ? Negatives::hardest : Negatives::semihard;
  }
  return options;
}

TripletRow::TripletRow(const TripletOptions& options, const PackedRows& references)
    : options_(options), references_(references) {}

void TripletRow::compute(const double* values, int64_t label, int64_t self) {
  loss_ = 0.0;
  active_ = 0;
  collect(values, label, self);
  keep_one_positive();
  if (options_.negatives == Negatives::all) {
    pair_with_all();
  } else {
    pair_with_one();
  }
}

void TripletRow::collect(const double* values, int64_t label, int64_t self) {
  positives_.clear();
  negatives_.clear();
  for (int64_t position = 0; position < references_.rows; ++position) {
    const double value = values[position];
    const int64_t index = references_.index[position];
    if (std::isnan(value) || index == self) {
      continue;
    }
    const double distance = returned_distance(options_.metric, value, options_.returns_double);
    std::vector<Partner>& partners =
        references_.labels[position] == label ? positives_ : negatives_;
    partners.push_back({value, distance, index, position, 0});
  }
  const auto closer = [](const Partner& a, const Partner& b) {
    return a.value != b.value ? a.value < b.value : a.index < b.index;
  };
  if (options_.negatives == Negatives::hardest && !negatives_.empty()) {
    std::iter_swap(negatives_.begin(),
                   std::min_element(negatives_.begin(), negatives_.end(), closer));
  } else {
    std::sort(negatives_.begin(), negatives_.end(), closer);
  }
}

void TripletRow::keep_one_positive() {
  if (options_.positives == Positives::all || positives_.empty()) {
    return;
  }
  const bool farthest = options_.positives == Positives::farthest;
  const auto better = [farthest](const Partner& a, const Partner& b) {
    if (a.value != b.value) {
      return farthest ? a.value > b.value : a.value < b.value;
    }
    return a.index < b.index;
  };
  positives_.front() = *std::min_element(positives_.begin(), positives_.end(), better);
  positives_.resize(1);
}

void TripletRow::pair_with_all() {
  const int64_t count = static_cast<int64_t>(negatives_.size());
  sums_.assign(count + 1, 0.0);
  for (int64_t n = 0; n < count; ++n) {
    sums_[n + 1] = sums_[n] + (negatives_[n].distance == INFINITY ? 0.0 : negatives_[n].distance);
  }
  ends_.assign(count + 1, 0);
  for (Partner& positive : positives_) {
    const double bound = positive.distance + options_.margin;
    const auto end = std::lower_bound(
        negatives_.begin(), negatives_.end(), bound,
        [](const Partner& negative, double limit) { return negative.distance < limit; });
    positive.triplets = end - negatives_.begin();
    if (positive.triplets > 0) {
      loss_ += static_cast<double>(positive.triplets) * bound - sums_[positive.triplets];
    }
    active_ += positive.triplets;
    ++ends_[positive.triplets];
  }
  int64_t longer = static_cast<int64_t>(positives_.size());
  for (int64_t n = 0; n < count; ++n) {
    longer -= ends_[n];
    negatives_[n].triplets = longer;
  }
}

void TripletRow::pair_with_one() {
  for (Partner& positive : positives_) {
    auto negative = negatives_.begin();
    if (options_.negatives == Negatives::semihard) {
      negative = std::upper_bound(
          negatives_.begin(), negatives_.end(), positive.distance,
          [](double limit, const Partner& candidate) { return limit < candidate.distance; });
    }
    if (negative == negatives_.end()) {
      continue;
    }
    const double hinge = positive.distance + options_.margin - negative->distance;
    if (hinge <= 0.0) {
      continue;
    }
    loss_ += hinge;
    ++active_;
    ++positive.triplets;
    ++negative->triplets;
  }
}

void TripletRow::write_weights(double* weights) const {
  std::fill(weights, weights + references_.panel_count * kPanelRows, 0.0);
  for (const Partner& positive : positives_) {
    weights[positive.position] = static_cast<double>(positive.triplets);
  }
  for (const Partner& negative : negatives_) {
    weights[negative.position] = -static_cast<double>(negative.triplets);
  }
}

}  // namespace dmlfast::cpu
