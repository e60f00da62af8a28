#include "engine/pack.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>

namespace dmlfast::cpu {

PackedMatrix::PackedMatrix(const Matrix& matrix, const int64_t* labels, const int64_t* order,
                           int64_t rows) {
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
  const int64_t padded = panels * kPanelRows;
  panels_.reset(new double[padded * matrix.columns()]);
  labels_.reset(new int64_t[padded]);
  index_.reset(new int64_t[padded]);
  norms_.reset(new double[padded]);
  finite_.reset(new uint8_t[padded]);
  view_ = {panels_.get(), labels_.get(), index_.get(),    norms_.get(),
           rows,          panels,        matrix.columns()};
  torch::stable::parallel_for(0, panels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      pack_panel(matrix, labels, order, panel);
    }
  });
}

void PackedMatrix::pack_panel(const Matrix& matrix, const int64_t* labels, const int64_t* order,
                              int64_t panel) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  double* to = panels_.get() + panel * kPanelRows * matrix.columns();
  for (int64_t lane = 0; lane < kPanelRows; ++lane) {
    const int64_t position = panel * kPanelRows + lane;
    if (position >= view_.rows) {
      for (int64_t k = 0; k < matrix.columns(); ++k) {
        to[k * kPanelRows + lane] = nan;
      }
      labels_[position] = labels[order[view_.rows - 1]];
      index_[position] = -1;
      norms_[position] = nan;
      finite_[position] = 0;
      continue;
    }
    const int64_t row = order[position];
    matrix.read_row(row, to + lane, kPanelRows);
    double squares = 0.0;
    double zero = 0.0;  // stays 0 while every element is finite, else becomes NaN
    for (int64_t k = 0; k < matrix.columns(); ++k) {
      const double element = to[k * kPanelRows + lane];
      squares += element * element;
      zero += element - element;
    }
    labels_[position] = labels[row];
    index_[position] = row;
    norms_[position] = std::sqrt(squares);
    finite_[position] = zero == 0.0;
  }
}

PackedPair::PackedPair(const torch::stable::Tensor& x, const torch::stable::Tensor& labels,
                       const torch::stable::Tensor& order, const torch::stable::Tensor& references,
                       const torch::stable::Tensor& reference_labels,
                       const torch::stable::Tensor& reference_order)
    : references_(Matrix(references), reference_labels.const_data_ptr<int64_t>(),
                  reference_order.const_data_ptr<int64_t>(), references.size(0)) {
  const Matrix rows(x);
  if (!rows.is(Matrix(references)) || order.const_data_ptr() != reference_order.const_data_ptr()) {
    anchors_ = std::make_unique<PackedMatrix>(rows, labels.const_data_ptr<int64_t>(),
                                              order.const_data_ptr<int64_t>(), x.size(0));
  }
}

}  // namespace dmlfast::cpu
