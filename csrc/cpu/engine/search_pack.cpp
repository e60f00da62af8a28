#include "engine/search_pack.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace dmlfast::cpu {

namespace {

constexpr int64_t kCentreRows = 1024;

// Classes with fewer rows share the common centre: their own would take too much memory.
constexpr int64_t kOwnCentreRows = 16;

// A row as long as this has elements of 16 bits, and two of them a product of 32, with room for
// the rounding of more dimensions than there can be.
constexpr double kLongestIntegerRow = 32000.0;

double greatest_finite(const std::vector<double>& norms) {
  double result = 0.0;
  for (double norm : norms) {
    result = norm > result && norm <= std::numeric_limits<double>::max() ? norm : result;
  }
  return result;
}

// Adds the mean of some of the rows at the positions [begin, end) to a vector of zeros.
void add_mean(const LabelledRows& references, int64_t begin, int64_t end, double* mean) {
  const int64_t rows = std::min(end - begin, kCentreRows);
  std::vector<double> row(references.rows.columns());
  double count = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t sampled = references.order[begin + i * (end - begin) / rows];
    if (!references.rows.is_finite(sampled)) {
      continue;
    }
    references.rows.read_row(sampled, row.data());
    count += 1.0;
    for (size_t k = 0; k < row.size(); ++k) {
      mean[k] += (row[k] - mean[k]) / count;
    }
  }
  // Near the end of float64's range a mean may leave it; no mean is as right.
  if (!std::all_of(mean, mean + row.size(), [](double k) { return std::isfinite(k); })) {
    std::fill(mean, mean + row.size(), 0.0);
  }
}

}  // namespace

SearchCentres::SearchCentres(const LabelledRows& references, Metric metric, bool same_class)
    : columns_(references.rows.columns()), common_(columns_, 0.0) {
  if (!sums_differences(metric)) {
    return;
  }
  const int64_t rows = references.rows.rows();
  add_mean(references, 0, rows, common_.data());
  for (int64_t begin = 0, end = 0; begin < rows && same_class; begin = end) {
    const int64_t label = references.labels[references.order[begin]];
    while (end < rows && references.labels[references.order[end]] == label) {
      ++end;
    }
    if (end - begin >= kOwnCentreRows) {
      labels_.push_back(label);
      own_.resize(own_.size() + columns_, 0.0);
      add_mean(references, begin, end, own_.data() + own_.size() - columns_);
    }
  }
}

const double* SearchCentres::of(int64_t label) const {
  const auto found = std::lower_bound(labels_.begin(), labels_.end(), label);
  return found == labels_.end() || *found != label
             ? common_.data()
             : own_.data() + (found - labels_.begin()) * columns_;
}

SearchMatrix::SearchMatrix(const LabelledRows& matrix, const SearchCentres& centres, Metric metric)
    : matrix_(matrix), centres_(centres), metric_(metric), norms_(matrix.rows.rows()) {
  torch::stable::parallel_for(0, rows(), 256, [&](int64_t begin, int64_t end) {
    std::vector<double> row(matrix_.rows.columns());
    for (int64_t position = begin; position < end; ++position) {
      const int64_t index = matrix_.order[position];
      const double* centre = centres_.of(matrix_.labels[index]);
      matrix_.rows.read_row(index, row.data());
      double squares = 0.0;
      for (size_t k = 0; k < row.size(); ++k) {
        squares += (row[k] - centre[k]) * (row[k] - centre[k]);
      }
      norms_[position] = std::sqrt(squares);
    }
  });
  greatest_norm_ = greatest_finite(norms_);
  has_infinite_ =
      std::any_of(norms_.begin(), norms_.end(), [](double norm) { return std::isinf(norm); });
  for (double norm : norms_) {
    least_norm_ = norm > 0.0 && norm < least_norm_ ? norm : least_norm_;
  }
  if (metric == Metric::cosine) {
    own_norms_ = norms_;
  }
}

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
      const int64_t index = matrix_.order[position];
      labels_[position] = matrix_.labels[index];
      if (!is_finite(position)) {
        for (int64_t k = 0; k < columns; ++k) {
          to[k * kSearchPanelRows] = 0.0f;
        }
        continue;
      }
      const double* centre = centres_.of(matrix_.labels[index]);
      matrix_.rows.read_row(index, row.data());
      double factor = scale;
      if (metric_ == Metric::cosine) {
        factor = norms_[position] == 0.0 ? 0.0 : 1.0 / norms_[position];
      }
      for (int64_t k = 0; k < columns; ++k) {
        to[k * kSearchPanelRows] = static_cast<float>((row[k] - centre[k]) * factor);
      }
      norms_[position] *= factor;
      const double addend = sums_differences(metric_) ? norms_[position] * norms_[position] : 0.0;
      addends_[position] = static_cast<float>(negated ? -addend : addend);
    }
  });
  greatest_packed_norm_ = greatest_finite(norms_);
  view_ = {panels_.get(), addends_.data(), labels_.data(), rows, panels, columns};
}

void SearchMatrix::pack_integers() {
  const int64_t rows = this->rows();
  const int64_t columns = matrix_.rows.columns();
  const int64_t panels = (rows + kSearchPanelRows - 1) / kSearchPanelRows;
  const int64_t panel_pairs = (columns + 1) / 2 * kSearchPanelRows;
  unit_ = greatest_norm_ / kLongestIntegerRow;
  const double factor = greatest_norm_ > 0.0 ? kLongestIntegerRow / greatest_norm_ : 0.0;
  integers_.reset(new int32_t[panels * panel_pairs]);
  labels_.resize(panels * kSearchPanelRows);
  torch::stable::parallel_for(0, panels, 16, [&](int64_t begin, int64_t end) {
    std::vector<double> row(columns + 1);
    for (int64_t position = begin * kSearchPanelRows; position < end * kSearchPanelRows;
         ++position) {
      const int64_t index = matrix_.order[std::min(position, rows - 1)];
      labels_[position] = matrix_.labels[index];
      std::fill(row.begin(), row.end(), 0.0);
      if (position < rows && is_finite(position)) {
        const double* centre = centres_.of(matrix_.labels[index]);
        matrix_.rows.read_row(index, row.data());
        for (int64_t k = 0; k < columns; ++k) {
          // Truncation rounds what is positive.
          row[k] = static_cast<double>(
              static_cast<int32_t>((row[k] - centre[k]) * factor + 32768.5) - 32768);
        }
      }
      int32_t* to =
          integers_.get() + position / kSearchPanelRows * panel_pairs + position % kSearchPanelRows;
      for (int64_t k = 0; k < columns; k += 2) {
        const auto low = static_cast<uint32_t>(static_cast<int32_t>(row[k])) & 0xffffu;
        const auto high = static_cast<uint32_t>(static_cast<int32_t>(row[k + 1])) << 16;
        to[k / 2 * kSearchPanelRows] = static_cast<int32_t>(high | low);
      }
    }
  });
  addends_.assign(panels * kSearchPanelRows, std::numeric_limits<float>::quiet_NaN());
  view_ = {nullptr, addends_.data(), labels_.data(), rows, panels, columns, integers_.get()};
}

void SearchMatrix::set_addends(double scale) {
  for (int64_t position = 0; position < rows(); ++position) {
    const double norm = norms_[position] * scale;
    addends_[position] = std::isfinite(norm) ? static_cast<float>(norm * norm)
                                             : std::numeric_limits<float>::quiet_NaN();
  }
}

double SearchMatrix::greatest_rest() const {
  return 0.5001 * unit_ * std::sqrt(static_cast<double>(matrix_.rows.columns()));
}

}  // namespace dmlfast::cpu
