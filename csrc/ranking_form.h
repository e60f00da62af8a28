// What the operators of the family ranking compute, on every device.
#pragma once

namespace dmlfast {

// The pairs of columns j < k whose order a ranking loss demands; `band` also bounds their steps.
enum class RankingPairs { all, adjacent, band };

struct RankingForm {
  double margin;
  double scale;
  RankingPairs pairs;
};

// Squared lengths between which sums and factors in float32 keep their digits. Projected rows
// beyond are computed in float64, also those of length 0 or NaN.
constexpr float kLeastSquare = 1e-20f;
constexpr float kGreatestSquare = 1e20f;

}  // namespace dmlfast
