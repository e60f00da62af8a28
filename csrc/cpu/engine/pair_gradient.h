// The gradient of a weighted sum of all distances, a block of anchors at a time.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "engine/packed_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

// The gradient of weight * distance(x, y) for x is factor * (y - x) under the Euclidean metrics,
// so that near-duplicates lose no digits, and factor * y else; for cosine it is made orthogonal
// to x at the end. Anchors own their sums over references, references theirs over anchors, both
// in ascending position order, so that no bit depends on the number of threads. Holds
// 16 * (N + M) * d bytes.
class PairGradient {
 public:
  PairGradient(Metric metric, const PackedRows& anchors, const PackedRows& references);

  // Adds scale * weights[j] * d distance(anchor, j) / d anchor over all references. `values` is
  // replaced by the pairs' factors, which add_references needs.
  void add_anchor(int64_t position, double scale, const double* weights, double* values);

  // Makes the gradient of an anchor that is not finite NaN, unless its scale is 0.
  void lose_anchor(int64_t position, double scale);

  // The references' share of the anchors [first, last), whose factors are given.
  void add_references(int64_t first, int64_t last, const double* factors);

  // Rounds into contiguous tensors in the order of the matrices' rows.
  void write(torch::stable::Tensor& grad_x, torch::stable::Tensor& grad_references);

 private:
  // One side's rows and the sums of its partners' multiples.
  struct Side {
    explicit Side(const PackedRows& packed);

    const double* row(int64_t position) const { return &rows[position * packed.dimensions]; }
    double* sum(int64_t position) { return &sums[position * packed.dimensions]; }

    const PackedRows& packed;
    std::vector<double> rows;
    std::vector<double> sums;
  };

  void add(Side& side, int64_t position, double factor, const double* partner) const;
  static void make_orthogonal(Side& side, int64_t position);
  double factor_of(double weight, double value, double norm_x, double norm_y) const;
  void write_side(Side& side, torch::stable::Tensor& gradient) const;

  Metric metric_;
  Side anchors_;
  Side references_;
};

}  // namespace dmlfast::cpu
