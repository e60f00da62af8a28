// Anchors and references packed for a walk over their pairs.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "engine/labelled_rows.h"
#include "engine/search_pack.h"
#include "metric.h"

namespace dmlfast::cpu {

// Anchors and references of a search, packed once where they are the same matrix in the same
// order.
class SearchPair {
 public:
  // `same_class`: only pairs of one class will be looked at. The scale, but for one greater than
  // `greatest_scale`, makes the longest row about as long as `length`.
  SearchPair(const LabelledRows& anchors, const LabelledRows& references, Metric metric,
             bool same_class = false, double length = 1.0,
             double greatest_scale = std::numeric_limits<double>::infinity());
  SearchPair(const SearchPair&) = delete;
  SearchPair& operator=(const SearchPair&) = delete;

  // Whether there is anything to search with: no row holds an infinity, and none is so short that
  // its float64 squares are not normal numbers.
  bool is_searchable() const;

  // As SearchMatrix::pack, at the scale of the pair.
  void pack(bool negated);

  const LabelledRows& anchors() const { return anchors_; }
  const LabelledRows& references() const { return references_; }
  Metric metric() const { return metric_; }
  const SearchMatrix& x() const { return x_ ? *x_ : y_; }
  const SearchMatrix& y() const { return y_; }
  bool is_symmetric() const { return !x_; }

  // A power of two: exact, and it keeps products far from the ends of float32's range.
  double scale() const { return scale_; }

  // More than the keys of the anchor at a position, of a finite norm, can be off.
  double error(int64_t position) const { return error_of(x().norm(position)); }

  // That of an anchor whose packed norm is at most this.
  double error_of(double norm) const;

 private:
  const LabelledRows anchors_;
  const LabelledRows references_;
  Metric metric_;
  SearchCentres centres_;
  SearchMatrix y_;
  std::optional<SearchMatrix> x_;
  double scale_ = 1.0;
};

// The nearest float32 that is not above, or not below.
float rounded_down(double value);
float rounded_up(double value);

}  // namespace dmlfast::cpu
