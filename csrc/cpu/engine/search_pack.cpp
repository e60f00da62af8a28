#include "engine/search_pack.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace dmlfast::cpu {

namespace {

constexpr int64_t kCentreRows = 1024;

double greatest_finite(const std::vector<double>& norms) {
  double result = 0.0;
  for (double norm : norms) {
    result = norm > result && norm <= std::numeric_limits<double>::max() ? norm : result;
  }
  return result;
}

}  // namespace

std::vector<double> search_centre(const Matrix& references, Metric metric) {
  std::vector<double> centre(references.columns(), 0.0);
  if (!sums_differences(metric) || references.rows() == 0) {
    return centre;
  }
  const int64_t rows = std::min(references.rows(), kCentreRows);
  std::vector<double> row(references.columns());
  double count = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t sampled = i * references.rows() / rows;
    if (!references.is_finite(sampled)) {
      continue;
    }
    references.read_row(sampled, row.data());
    count += 1.0;
    for (size_t k = 0; k < row.size(); ++k) {
      centre[k] += (row[k] - centre[k]) / count;
    }
  }
  return centre;
}

SearchMatrix::SearchMatrix(const LabelledRows& matrix, const std::vector<double>& centre,
                           Metric metric)
    : matrix_(matrix), centre_(centre), metric_(metric), norms_(matrix.rows.rows()) {
  torch::stable::parallel_for(0, rows(), 256, [&](int64_t begin, int64_t end) {
    std::vector<double> row(matrix_.rows.columns());
    for (int64_t position = begin; position < end; ++position) {
      matrix_.rows.read_row(matrix_.order[position], row.data());
      double squares = 0.0;
      for (size_t k = 0; k < row.size(); ++k) {
        squares += (row[k] - centre_[k]) * (row[k] - centre_[k]);
      }
      norms_[position] = std::sqrt(squares);
    }
  });
  greatest_norm_ = greatest_finite(norms_);
  has_infinite_ =
      std::any_of(norms_.begin(), norms_.end(), [](double norm) { return std::isinf(norm); });
  if (metric == Metric::cosine) {
    own_norms_ = norms_;
  }
}

double SearchMatrix::greatest_packed_norm() const { return greatest_finite(norms_); }

void SearchMatrix::pack(double scale, bool negated) {
  const int64_t rows = this->rows();
  const int64_t columns = matrix_.rows.columns();
  const int64_t panels = (rows + kSearchPanelRows - 1) / kSearchPanelRows;
  panels_.reset(new float[panels * kSearchPanelRows * columns]);
  addends_.assign(panels * kSearchPanelRows, std::numeric_limits<float>::quiet_NaN());
  labels_.resize(panels * kSearchPanelRows);
  torch::stable::parallel_for(0, panels, 16, [&](int64_t begin, int64_t end) {
    std::vector<double> row(columns);
    for (int64_t position = begin * kSearchPanelRows; position < end * kSearchPanelRows;
         ++position) {
      float* to = panels_.get() + position / kSearchPanelRows * kSearchPanelRows * columns +
                  position % kSearchPanelRows;
      if (position >= rows) {
        for (int64_t k = 0; k < columns; ++k) {
          to[k * kSearchPanelRows] = 0.0f;
        }
        labels_[position] = matrix_.labels[matrix_.order[rows - 1]];
        continue;
      }
      labels_[position] = matrix_.labels[matrix_.order[position]];
      if (!is_finite(position)) {
        for (int64_t k = 0; k < columns; ++k) {
          to[k * kSearchPanelRows] = 0.0f;
        }
        continue;
      }
      matrix_.rows.read_row(matrix_.order[position], row.data());
      double factor = scale;
      if (metric_ == Metric::cosine) {
        factor = norms_[position] == 0.0 ? 0.0 : 1.0 / norms_[position];
      }
      for (int64_t k = 0; k < columns; ++k) {
        to[k * kSearchPanelRows] = static_cast<float>((row[k] - centre_[k]) * factor);
      }
      norms_[position] *= factor;
      const double addend = sums_differences(metric_) ? norms_[position] * norms_[position] : 0.0;
      addends_[position] = static_cast<float>(negated ? -addend : addend);
    }
  });
  view_ = {panels_.get(), addends_.data(), labels_.data(), rows, panels, columns};
}

}  // namespace dmlfast::cpu
