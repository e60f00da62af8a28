// The nearest centre of every row, for centres that move.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/matrix.h"
#include "engine/search_pack.h"
#include "neighbors_search_isa.h"

namespace dmlfast::cpu {

// float64 sums, over the dimensions in ascending order, of the squared differences of up to four
// rows from `first` on and a centre for each: independent of each other, they hide the latency of
// an addition. `buffer` has room for as many rows.
constexpr int64_t kRowsTogether = 4;
void squared_distances(const Matrix& rows, int64_t first, int64_t count,
                       const double* const (&centres)[kRowsTogether], double* buffer,
                       double (&values)[kRowsTogether]);

// Rows are packed once. The search of a row starts from its last centre: what is farther than that
// one is now, is no candidate.
class NearestCentres {
 public:
  NearestCentres(const Matrix& rows, int64_t centres);
  NearestCentres(const NearestCentres&) = delete;
  NearestCentres& operator=(const NearestCentres&) = delete;

  // Assigns every row to the nearest centre, the lowest of equally near ones.
  void assign(const Matrix& centres);

  // [row] the centre; -1 for a row that is not finite, or where no centre is a number.
  const std::vector<int64_t>& index() const { return index_; }

  // [row] the exact squared distance to it; 0 without one.
  const std::vector<double>& values() const { return values_; }

 private:
  LabelledRows labelled(const Matrix& rows) const { return {rows, labels_.data(), order_.data()}; }

  // Whether the error bound of a search holds.
  bool is_searchable(const SearchMatrix& y) const;
  void search(SearchMatrix& y, const Matrix& centres, std::vector<uint8_t>& undecided);
  double error_of(int64_t row, const SearchMatrix& y) const;
  SearchTask task_of(const SearchMatrix& y);
  void set_limits(int64_t begin, int64_t end, const SearchMatrix& y);
  void decide(int64_t begin, int64_t end, std::vector<uint8_t>& undecided);
  void compare_exactly(const Matrix& centres, const std::vector<int64_t>& positions);

  const Matrix rows_;
  std::vector<int64_t> labels_;  // of rows and centres: all of one class
  std::vector<int64_t> order_;
  SearchCentres origin_;
  SearchMatrix x_;
  std::vector<uint8_t> is_finite_;
  std::vector<int64_t> index_;
  std::vector<double> values_;
  double scale_ = 1.0;
  std::vector<double> centres_;  // [centre][dimension]
  // As SearchTask has them.
  std::vector<int64_t> self_;
  std::vector<float> twice_error_;
  std::vector<float> limits_;
  std::vector<float> lost_;
  std::vector<int32_t> counts_;
  std::unique_ptr<float[]> keys_;
  std::unique_ptr<int32_t[]> positions_;
};

}  // namespace dmlfast::cpu
