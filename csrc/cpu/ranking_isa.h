// The part of the family `ranking` that is compiled once per instruction set level: sums of
// exponentials over the pairs of columns of kPanelRows rows at a time.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

// One log-sum-exp: over the pairs of columns j < k of a row, of scale * difference + a constant
// that the caller adds, where difference = sign * (value[k] - value[j]) + shifts[k].
struct RankingSide {
  double sign;  // 1 or -1
  double scale;
  bool is_adjacent;      // pairs k = j + 1 alone
  const double* shifts;  // [columns]
  int64_t columns;       // at least 2
};

// Values [columns][kPanelRows]. Writes the greatest difference of each row to greatest[kPanelRows],
// to sums[kPanelRows] the sum of exp(scale * (difference - greatest)), at least 1, and to terms,
// [columns][kPanelRows], the parts of that sum that have a column as k.
using RankingSumFunction = void (*)(const RankingSide&, const double* values, double* greatest,
                                    double* sums, double* terms);

// Adds to gradients, [columns][kPanelRows], the derivatives of the sums, over the scale and times a
// weight of each row.
using RankingGradientFunction = void (*)(const RankingSide&, const double* values,
                                         const double* greatest, const double* terms,
                                         const double* weights, double* gradients);

namespace baseline {
void ranking_sums(const RankingSide&, const double* values, double* greatest, double* sums,
                  double* terms);
void ranking_gradients(const RankingSide&, const double* values, const double* greatest,
                       const double* terms, const double* weights, double* gradients);
}  // namespace baseline
namespace avx2 {
void ranking_sums(const RankingSide&, const double* values, double* greatest, double* sums,
                  double* terms);
void ranking_gradients(const RankingSide&, const double* values, const double* greatest,
                       const double* terms, const double* weights, double* gradients);
}  // namespace avx2
namespace avx512 {
void ranking_sums(const RankingSide&, const double* values, double* greatest, double* sums,
                  double* terms);
void ranking_gradients(const RankingSide&, const double* values, const double* greatest,
                       const double* terms, const double* weights, double* gradients);
}  // namespace avx512

}  // namespace dmlfast::cpu
