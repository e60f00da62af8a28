// Packs matrices for the tile walk.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>

#include "engine/matrix.h"
#include "engine/packed_rows.h"

namespace dmlfast::cpu {

// Owns a matrix packed in label order: 8 * rows * (dimensions + 3) bytes.
class PackedMatrix {
 public:
  // Packs the `rows` rows that `order` lists, by ascending label.
  PackedMatrix(const Matrix& matrix, const int64_t* labels, const int64_t* order, int64_t rows);

  const PackedRows& view() const { return view_; }

  // Whether the row at a position holds a NaN or an infinity.
  bool is_finite(int64_t position) const { return finite_[position] != 0; }

 private:
  void pack_panel(const Matrix& matrix, const int64_t* labels, const int64_t* order, int64_t panel);

  std::unique_ptr<double[]> panels_;
  std::unique_ptr<int64_t[]> labels_;
  std::unique_ptr<int64_t[]> index_;
  std::unique_ptr<double[]> norms_;
  std::unique_ptr<uint8_t[]> finite_;
  PackedRows view_;
};

// Anchors and references of an operator, packed once where they are the same matrix.
class PackedPair {
 public:
  PackedPair(const torch::stable::Tensor& x, const torch::stable::Tensor& labels,
             const torch::stable::Tensor& order, const torch::stable::Tensor& references,
             const torch::stable::Tensor& reference_labels,
             const torch::stable::Tensor& reference_order);

  const PackedMatrix& anchors() const { return anchors_ ? *anchors_ : references_; }
  const PackedMatrix& references() const { return references_; }

 private:
  PackedMatrix references_;
  std::unique_ptr<PackedMatrix> anchors_;
};

}  // namespace dmlfast::cpu
