#include "clusters_search.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/block_schedule.h"
#include "engine/isa.h"
#include "engine/search_pair.h"
#include "neighbors_select.h"

namespace dmlfast::cpu {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();

// A thread's rows, and the centres that they meet while these stay in the second cache.
constexpr int64_t kTaskRows = 1024;
constexpr int64_t kCentreBytes = 384 * 1024;

// The error bound counts on float64 squares of rows this long to be normal numbers.
constexpr double kLeastNorm = 1e-140;

constexpr double kUnit = 0x1p-24;        // relative rounding error of float32
constexpr double kDoubleUnit = 0x1p-53;  // that of float64
constexpr double kUnderflow = 0x1p-110;  // more than keys and what they are made of can lose

}  // namespace

void squared_distances(const Matrix& rows, int64_t first, int64_t count,
                       const double* const (&centres)[kRowsTogether], double* buffer,
                       double (&values)[kRowsTogether]) {
  static_assert(kRowsTogether == 4, "as many sums as are written out");
  const int64_t dimensions = rows.columns();
  for (int64_t r = 0; r < count; ++r) {
    rows.read_row(first + r, buffer + r * dimensions);
  }
  // Past the count are rows that an earlier call left: their sums are not used.
  double sums[kRowsTogether] = {};
  for (int64_t k = 0; k < dimensions; ++k) {
    const double a = buffer[k] - centres[0][k];
    const double b = buffer[dimensions + k] - centres[1][k];
    const double c = buffer[2 * dimensions + k] - centres[2][k];
    const double d = buffer[3 * dimensions + k] - centres[3][k];
    sums[0] += a * a;
    sums[1] += b * b;
    sums[2] += c * c;
    sums[3] += d * d;
  }
  std::copy_n(sums, kRowsTogether, values);
}

NearestCentres::NearestCentres(const Matrix& rows, int64_t centres)
    : rows_(rows),
      labels_(std::max(rows.rows(), centres), 0),
      order_(labels_.size()),
      origin_((std::iota(order_.begin(), order_.end(), 0), labelled(rows)), Metric::sqeuclidean,
              false),
      x_(labelled(rows), origin_, Metric::sqeuclidean),
      is_finite_(rows.rows()),
      index_(rows.rows(), -1),
      values_(rows.rows(), 0.0),
      centres_(centres * rows.columns()) {
  for (int64_t i = 0; i < rows.rows(); ++i) {
    is_finite_[i] = x_.is_finite(i) || rows.is_finite(i) ? 1 : 0;
  }
  x_.pack_integers();
  const int64_t padded = x_.view().panel_count * kSearchPanelRows;
  self_.assign(padded, -1);
  twice_error_.assign(padded, 0.0f);
  limits_.assign(padded, -kFloatInfinity);
  lost_.assign(padded, kFloatInfinity);
  counts_.assign(padded, 0);
  keys_.reset(new float[padded * kWindow]);
  positions_.reset(new int32_t[padded * kWindow]);
}

void NearestCentres::assign(const Matrix& centres) {
  SearchMatrix y(labelled(centres), origin_, Metric::sqeuclidean);
  std::vector<uint8_t> undecided = is_finite_;
  if (is_searchable(y)) {
    std::fill(undecided.begin(), undecided.end(), 0);
    search(y, centres, undecided);
  }
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < rows_.rows(); ++i) {
    if (undecided[i] != 0) {
      positions.push_back(i);
    }
  }
  if (!positions.empty()) {
    compare_exactly(centres, positions);
  }
}

bool NearestCentres::is_searchable(const SearchMatrix& y) const {
  bool is_bounded = !y.has_infinite() && rows_.columns() > 0 &&
                    std::max(rows_.rows(), y.rows()) <= std::numeric_limits<int32_t>::max();
  for (int64_t i = 0; i < rows_.rows() && is_bounded; ++i) {
    is_bounded = is_finite_[i] == 0 || x_.is_finite(i);
  }
  const double least = std::max(x_.greatest_norm(), y.greatest_norm());
  return is_bounded && (least == 0.0 || least > kLeastNorm);
}

void NearestCentres::search(SearchMatrix& y, const Matrix& centres,
                            std::vector<uint8_t>& undecided) {
  for (int64_t j = 0; j < y.rows(); ++j) {
    centres.read_row(j, centres_.data() + j * rows_.columns());
  }
  // A power of two: exact, and it keeps keys far from the ends of float32's range.
  const double greatest = std::max(x_.greatest_norm(), y.greatest_norm());
  scale_ = greatest > 0.0 ? std::exp2(-std::ilogb(greatest)) : 1.0;
  y.pack_integers();
  y.set_addends(scale_);
  const SearchTask task = task_of(y);
  const SearchFunction search = DMLFAST_OF_ISA(search_integers);
  const int64_t panels =
      kCentreBytes / (2 * kSearchPanelRows * std::max<int64_t>(1, rows_.columns()));
  const int64_t step = std::max<int64_t>(2, panels / 2 * 2) * kSearchPanelRows;
  const int64_t count = rows_.rows();
  share((count + kTaskRows - 1) / kTaskRows, [&](int64_t t) {
    const Span rows{t * kTaskRows, std::min(count, (t + 1) * kTaskRows)};
    set_limits(rows.begin, rows.end, y);
    for (int64_t begin = 0; begin < y.rows(); begin += step) {
      search(task, rows, {begin, std::min(y.rows(), begin + step)});
    }
    decide(rows.begin, rows.end, undecided);
  });
}

SearchTask NearestCentres::task_of(const SearchMatrix& y) {
  const double factor = -2.0 * x_.unit() * y.unit() * scale_ * scale_;
  return {{x_.view(), y.view(), false, LabelRule::all, static_cast<float>(factor), self_.data()},
          nullptr,
          nullptr,
          twice_error_.data(),
          limits_.data(),
          lost_.data(),
          counts_.data(),
          keys_.get(),
          positions_.get()};
}

// The key of a pair is the scaled value less the row's own square. Beside the rounding of float32
// as in a search by float32 products, but that of the sums, which are exact, its error is what the
// integers leave over. The float64 sums round, too, those that are compared included.
double NearestCentres::error_of(int64_t row, const SearchMatrix& y) const {
  const double norm = x_.norm(row) * scale_;
  const double greatest = y.greatest_norm() * scale_;
  const double x_rest = x_.greatest_rest() * scale_;
  const double y_rest = y.greatest_rest() * scale_;
  const double products = 2.0 * norm * greatest;
  const double sum = norm + greatest;
  return 1.0625 * kUnit * (7.0 * products + 3.0 * greatest * greatest) +
         2.0 * (norm * y_rest + x_rest * (greatest + y_rest)) +
         4.0 * (static_cast<double>(rows_.columns()) + 8.0) * kDoubleUnit * sum * sum + kUnderflow;
}

void NearestCentres::set_limits(int64_t begin, int64_t end, const SearchMatrix& y) {
  const int64_t dimensions = rows_.columns();
  std::vector<double> buffer(kRowsTogether * dimensions);
  for (int64_t first = begin; first < end; first += kRowsTogether) {
    const int64_t count = std::min(kRowsTogether, end - first);
    const double* own[kRowsTogether];
    bool is_assigned = false;
    for (int64_t r = 0; r < kRowsTogether; ++r) {
      const int64_t centre = r < count ? index_[first + r] : -1;
      own[r] = centres_.data() + std::max<int64_t>(0, centre) * dimensions;
      is_assigned |= centre >= 0;
    }
    double values[kRowsTogether] = {};
    if (is_assigned) {
      squared_distances(rows_, first, count, own, buffer.data(), values);
    }
    for (int64_t i = first; i < first + count; ++i) {
      limits_[i] = is_finite_[i] != 0 ? kFloatInfinity : -kFloatInfinity;
      lost_[i] = kFloatInfinity;
      counts_[i] = 0;
      const double error = error_of(i, y);
      twice_error_[i] = is_finite_[i] != 0 ? rounded_up(2.0 * error) : 0.0f;
      const double value = values[i - first];
      if (index_[i] >= 0 && !std::isnan(value)) {
        values_[i] = value;
        const double norm = x_.norm(i) * scale_;
        limits_[i] = rounded_up(value * scale_ * scale_ - norm * norm + error);
      } else {
        index_[i] = -1;
        values_[i] = 0.0;
      }
    }
  }
}

void NearestCentres::decide(int64_t begin, int64_t end, std::vector<uint8_t>& undecided) {
  const int64_t dimensions = rows_.columns();
  std::vector<double> row(dimensions);
  for (int64_t i = begin; i < end; ++i) {
    if (lost_[i] <= limits_[i] && lost_[i] < kFloatInfinity) {
      undecided[i] = 1;
      continue;
    }
    bool is_read = false;
    for (int32_t c = 0; c < counts_[i]; ++c) {
      const int64_t centre = positions_[i * kWindow + c];
      if (keys_[i * kWindow + c] > limits_[i] || centre == index_[i]) {
        continue;
      }
      if (!is_read) {
        rows_.read_row(i, row.data());
        is_read = true;
      }
      double value = 0.0;
      for (int64_t k = 0; k < dimensions; ++k) {
        const double difference = row[k] - centres_[centre * dimensions + k];
        value += difference * difference;
      }
      if (index_[i] < 0 || value < values_[i] || (value == values_[i] && centre < index_[i])) {
        index_[i] = centre;
        values_[i] = value;
      }
    }
  }
}

void NearestCentres::compare_exactly(const Matrix& centres, const std::vector<int64_t>& positions) {
  const SelectProblem problem{
      labelled(rows_), labelled(centres), Metric::sqeuclidean, true, false, nullptr, 1};
  SelectState state(rows_.rows(), 1);
  select_exactly(problem, positions.data(), static_cast<int64_t>(positions.size()),
                 {0, centres.rows()}, state);
  for (int64_t i : positions) {
    index_[i] = state.best_index[i];
    values_[i] = state.best_index[i] < 0 ? 0.0 : state.best_value[i];
  }
}

}  // namespace dmlfast::cpu
