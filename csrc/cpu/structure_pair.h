// Anchors with weights of their own and references, packed for walks over all their pairs.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/gradient_sums.h"
#include "engine/matrix.h"
#include "engine/search_rows.h"
#include "engine/walk_task.h"

namespace dmlfast::cpu {

// The squared distance of an anchor with weights w is a product of twice as many dimensions,
//   sum w_k (e_k - y_k)^2 = sum w_k e_k^2 + <[w, -2 w e], [y y, y]>,
// of rows less a common centre, so that the engine's walk serves it. Arrays by anchor position are
// padded to whole panels; rows are their own positions.
class StructurePair {
 public:
  // Without references the embeddings are their own; with `excludes_self` no anchor is then a
  // partner of itself.
  StructurePair(const torch::stable::Tensor& e, const torch::stable::Tensor& w,
                const std::optional<torch::stable::Tensor>& references, bool squared,
                bool excludes_self);
  StructurePair(const StructurePair&) = delete;
  StructurePair& operator=(const StructurePair&) = delete;

  int64_t anchors() const { return e_.rows(); }
  int64_t references() const { return y_.rows(); }
  int64_t dimensions() const { return e_.columns(); }
  int64_t padded_anchors() const { return static_cast<int64_t>(self_.size()); }
  const int64_t* self() const { return self_.data(); }
  const SearchRows& x() const { return x_rows_; }
  const SearchRows& y() const { return y_rows_; }

  // By position: 1 for embeddings that are not finite, and for anchors whose weights are not, or
  // are negative.
  const std::vector<uint8_t>& lost_anchors() const { return lost_anchors_; }
  const std::vector<uint8_t>& lost_references() const { return lost_references_; }

  // A packed distance of 1 is this distance, a power of two.
  double unit() const;

  // What near pairs add to a gradient is not in it.
  WalkTask task(const GradientSums* x, const GradientSums* y) const;

 private:
  friend class StructureGradients;

  void find_centre();
  void find_scales();
  void pack_anchors();
  void pack_references();
  // A row less the centre, scaled.
  void read_packed(const Matrix& rows, int64_t row, std::vector<double>& to) const;
  // As PairDistance has it.
  static void distances(const void* pair, double unit, int64_t x, int64_t first,
                        const int32_t* columns, int64_t count, float* values);

  const Matrix e_;
  const Matrix w_;
  const Matrix y_;
  const bool squared_;
  std::vector<double> centre_;
  double scale_ = 1.0;         // of embeddings
  double weight_scale_ = 1.0;  // of weights; a power of four
  float least_sum_ = 0.0f;
  std::vector<uint8_t> lost_anchors_;
  std::vector<uint8_t> lost_references_;
  std::vector<int64_t> self_;
  std::vector<float> x_addends_;
  std::vector<float> y_addends_;
  std::unique_ptr<float[]> x_panels_;
  std::unique_ptr<float[]> y_panels_;
  SearchRows x_rows_{};
  SearchRows y_rows_{};
};

// Zeros that take memory where they are written to.
using LazyZeros = std::unique_ptr<double[], void (*)(void*)>;

// What a walk adds up for the gradients by embeddings, weights and references.
class StructureGradients {
 public:
  using IsLost = std::function<bool(int64_t)>;

  explicit StructureGradients(const StructurePair& pair);

  WalkTask task() const;
  const GradientSums& x() const { return x_; }
  const GradientSums& y() const { return y_; }

  // Rounds the gradients, times `factor`, into contiguous tensors; NaN for rows that are lost as an
  // anchor or reference. Within a batch grad_e is the whole and grad_references has no rows.
  void write(double factor, bool within_batch, const IsLost& anchor_is_lost,
             const IsLost& reference_is_lost, torch::stable::Tensor& grad_e,
             torch::stable::Tensor& grad_w, torch::stable::Tensor& grad_references) const;

 private:
  // As PairDistance has them.
  static void distances(const void* gradients, double unit, int64_t x, int64_t first,
                        const int32_t* columns, int64_t count, float* values);
  static void add_differences(const void* gradients, int64_t x, int64_t first,
                              const int32_t* columns, int64_t count, const float* weights,
                              float* x_sums, float* y_sums, int64_t stride);

  double* x_near(int64_t position) const {
    return x_near_.get() + 2 * position * pair_.dimensions();
  }
  double* y_near(int64_t position) const { return y_near_.get() + position * pair_.dimensions(); }

  void read_anchor(int64_t position, double factor, std::vector<double>& to_e,
                   std::vector<double>& to_w) const;
  void add_reference(int64_t position, double factor, std::vector<double>& to_y) const;

  const StructurePair& pair_;
  GradientSums x_;
  GradientSums y_;
  // Of near pairs, of differences of the values as given: [anchor][sums P (e - y), P (e - y)^2] and
  // [reference][sums P w (e - y)].
  LazyZeros x_near_;
  LazyZeros y_near_;
};

}  // namespace dmlfast::cpu
