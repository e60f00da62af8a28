// Packs matrices for the fast search.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "engine/labelled_rows.h"
#include "engine/search_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

// What is taken from every row before it is packed: the mean of some rows under the Euclidean
// metrics, whose distances it does not change, else zero. Shifted and collapsed batches become
// ordinary. Where only pairs of one class are compared, each of the larger classes has a centre of
// its own, so that collapsed classes do.
class SearchCentres {
 public:
  SearchCentres(const LabelledRows& references, Metric metric, bool same_class);

  const double* of(int64_t label) const;

 private:
  int64_t columns_;
  std::vector<double> common_;
  std::vector<int64_t> labels_;  // of the classes with a centre of their own, ascending
  std::vector<double> own_;
};

// Owns a matrix packed for the search: 4 * rows * dimensions bytes, half as many as integers, and a
// few per row.
class SearchMatrix {
 public:
  SearchMatrix(const LabelledRows& matrix, const SearchCentres& centres, Metric metric);

  int64_t rows() const { return matrix_.rows.rows(); }

  // Largest norm of the centred rows that are finite.
  double greatest_norm() const { return greatest_norm_; }

  // Whether a row without NaN holds an infinity.
  bool has_infinite() const { return has_infinite_; }

  // Smallest norm of the centred rows that are not 0; infinite without any.
  double least_norm() const { return least_norm_; }

  bool is_finite(int64_t position) const { return std::isfinite(norms_[position]); }

  // Packs the rows times `scale`, a power of two (cosine: each row over its norm); addends are
  // negated where the greatest value is searched for. Rows that are not finite are packed as
  // zeros whose addend is NaN, so that no key of theirs compares.
  void pack(double scale, bool negated);

  // Packs the rows as 16-bit integers, multiples of `unit` that no element is farther from than
  // half of it; for the Euclidean metrics. Norms stay those of the centred rows.
  void pack_integers();

  // For rows packed as integers: what the keys need where distances are multiplied by `scale`.
  void set_addends(double scale);

  double unit() const { return unit_; }

  // More than the norm of what the integers leave over of any row.
  double greatest_rest() const;

  const SearchRows& view() const { return view_; }

  // Norm of the packed row at a position, before its elements were rounded; NaN or infinite for
  // one that is not finite.
  double norm(int64_t position) const { return norms_[position]; }

  double greatest_packed_norm() const { return greatest_packed_norm_; }

  // Norm of the row as it was given, as cosine needs it.
  double own_norm(int64_t position) const { return own_norms_[position]; }

 private:
  const LabelledRows matrix_;
  const SearchCentres& centres_;
  Metric metric_;
  double greatest_norm_ = 0.0;
  bool has_infinite_ = false;
  double least_norm_ = std::numeric_limits<double>::infinity();
  double greatest_packed_norm_ = 0.0;
  double unit_ = 0.0;
  std::vector<double> norms_;
  std::vector<double> own_norms_;
  std::unique_ptr<float[]> panels_;
  std::unique_ptr<int32_t[]> integers_;
  std::vector<float> addends_;
  std::vector<int64_t> labels_;
  SearchRows view_{};
};

}  // namespace dmlfast::cpu
