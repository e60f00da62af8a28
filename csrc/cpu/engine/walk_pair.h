// Anchors and references packed for walks over all their pairs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/labelled_rows.h"
#include "engine/search_pair.h"
#include "engine/walk_task.h"
#include "metric.h"

namespace dmlfast::cpu {

struct Range {
  double least;
  double greatest;
};

// Everything a walk over pairs needs to know of its rows. Arrays by anchor position are padded to
// whole panels.
class WalkPair {
 public:
  // As long the longest row is packed: rows much shorter have squares in float32, too, and those of
  // distances leave room above.
  static constexpr double kLongRow = 0x1p40;

  // `is_symmetric`: the references are the anchors, and each anchor is its own self.
  WalkPair(const LabelledRows& anchors, const LabelledRows& references, bool is_symmetric,
           const int64_t* self_index, Metric metric, double length = kLongRow);
  WalkPair(const WalkPair&) = delete;
  WalkPair& operator=(const WalkPair&) = delete;

  // Makes each anchor's own self a partner like others.
  void keep_self() { std::fill(self_.begin(), self_.end(), -1); }

  const LabelledRows& anchors() const { return pair_.anchors(); }
  const LabelledRows& references() const { return pair_.references(); }
  bool is_symmetric() const { return is_symmetric_; }
  Metric metric() const { return pair_.metric(); }
  const SearchMatrix& x() const { return pair_.x(); }
  const SearchMatrix& y() const { return pair_.y(); }
  int64_t padded_anchors() const { return static_cast<int64_t>(self_.size()); }

  // Rows were multiplied by this power of two, and a packed distance of 1 is this distance.
  double scale() const { return pair_.scale(); }
  double unit() const;

  // More than any key, a value less a part of its anchor's, can be off.
  double greatest_key_error() const { return pair_.error_of(x().greatest_packed_norm()); }

  // Bounds of the packed distances.
  Range distance_range() const;

  // The value that selections compare, of rows at two positions.
  double exact_value(int64_t x, int64_t y) const;

  // Adds the gradient of derivative * packed distance to the sums of two rows.
  void add_pair(int64_t x, int64_t y, double derivative, double distance,
                const GradientRows& x_gradient, const GradientRows& y_gradient) const;

  WalkTask task(const GradientRows* x_gradient, const GradientRows* y_gradient) const;
  const int64_t* class_begin() const { return class_begin_.data(); }
  const int64_t* class_end() const { return class_end_.data(); }
  const int64_t* self() const { return self_.data(); }

 private:
  static std::vector<double>& read(const LabelledRows& matrix, int64_t position,
                                   std::vector<double>& row);
  float least_sum() const;
  // As PairDistance has them.
  static void distances(const void* pair, double unit, int64_t x, int64_t first,
                        const int32_t* columns, int64_t count, float* values);
  static void add_differences(const void* pair, int64_t x, int64_t first, const int32_t* columns,
                              int64_t count, const float* weights, float* x_sums, float* y_sums,
                              int64_t stride);

  SearchPair pair_;
  bool is_symmetric_;
  std::vector<int64_t> class_begin_;
  std::vector<int64_t> class_end_;
  std::vector<int64_t> self_;
};

}  // namespace dmlfast::cpu
