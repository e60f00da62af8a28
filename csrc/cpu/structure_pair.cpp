#include "structure_pair.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <numeric>

#include "engine/labelled_rows.h"
#include "engine/search_pack.h"

namespace dmlfast::cpu {

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The longest row is packed about this long: squares of much shorter ones are float32 numbers, too,
// and those of distances leave room above.
constexpr double kLongRow = 0x1p30;

// Keeps the squares of units inside the range of float32, as two factors.
constexpr double kGreatestScale = 0x1p60;

// Packed weights of anchors whose norms are below come close to the end of float32's range: there
// they are off by 2^-150, and a square by up to 2^-90 in each dimension, below a 2^-37th of this.
constexpr double kLeastPackedNorm = 1e-8;

// The product of two halves of a packed row.
int64_t depth_of(int64_t dimensions) { return 2 * dimensions; }

int64_t padded(int64_t rows) {
  return (rows + kSearchPanelRows - 1) / kSearchPanelRows * kSearchPanelRows;
}

LazyZeros lazy_zeros(int64_t count) {
  void* zeros = std::calloc(std::max<int64_t>(count, 1), sizeof(double));
  if (zeros == nullptr) {
    throw std::bad_alloc();
  }
  return LazyZeros(static_cast<double*>(zeros), std::free);
}

// A power of two that takes the greatest value to about `size`.
double scale_to(double size, double greatest) {
  return greatest > 0.0 ? std::min(kGreatestScale, size * std::exp2(-std::ilogb(greatest))) : 1.0;
}

// At least 0.
double greatest_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0,
                         [](double a, double b) { return std::max(a, b); });
}

float* element_of(float* panels, int64_t depth, int64_t position) {
  return panels + position / kSearchPanelRows * kSearchPanelRows * depth +
         position % kSearchPanelRows;
}

// Calls f(position) for all positions, padding included.
template <class F>
void for_each_position(int64_t rows, const F& f) {
  torch::stable::parallel_for(0, padded(rows), 256, [&](int64_t begin, int64_t end) {
    std::vector<double> row;
    std::vector<double> weights;
    for (int64_t position = begin; position < end; ++position) {
      f(position, row, weights);
    }
  });
}

}  // namespace

StructurePair::StructurePair(const torch::stable::Tensor& e, const torch::stable::Tensor& w,
                             const std::optional<torch::stable::Tensor>& references, bool squared,
                             bool excludes_self)
    : e_(e),
      w_(w),
      y_(references ? *references : e),
      squared_(squared),
      lost_anchors_(e.size(0)),
      lost_references_(y_.rows()),
      self_(padded(e.size(0)), -1) {
  if (excludes_self) {
    std::iota(self_.begin(), self_.end(), 0);
  }
  find_centre();
  find_scales();
  pack_anchors();
  pack_references();
}

double StructurePair::unit() const {
  const double root = 1.0 / (scale_ * std::sqrt(weight_scale_));
  return squared_ ? root * root : root;
}

void StructurePair::find_centre() {
  std::vector<int64_t> order(y_.rows());
  std::iota(order.begin(), order.end(), 0);
  const SearchCentres centres({y_, order.data(), order.data()}, Metric::euclidean, false);
  centre_.assign(centres.of(0), centres.of(0) + dimensions());
}

void StructurePair::find_scales() {
  std::vector<double> lengths(padded(std::max(anchors(), references())), 0.0);
  std::vector<double> weights(padded(anchors()), 0.0);
  const auto length_of = [&](const Matrix& rows, int64_t i, std::vector<double>& row) {
    row.resize(dimensions());
    rows.read_row(i, row.data());
    double squares = 0.0;
    for (int64_t k = 0; k < dimensions(); ++k) {
      squares += (row[k] - centre_[k]) * (row[k] - centre_[k]);
    }
    return std::isfinite(squares) ? std::sqrt(squares) : -1.0;
  };
  for_each_position(references(), [&](int64_t j, std::vector<double>& row, std::vector<double>&) {
    if (j < references()) {
      lengths[j] = length_of(y_, j, row);
      lost_references_[j] = lengths[j] < 0.0 ? 1 : 0;
    }
  });
  const bool within = e_.is(y_);
  for_each_position(anchors(), [&](int64_t i, std::vector<double>& row, std::vector<double>& own) {
    if (i >= anchors()) {
      return;
    }
    const double length = within ? lengths[i] : length_of(e_, i, row);
    own.resize(dimensions());
    w_.read_row(i, own.data());
    const bool is_metric =
        std::all_of(own.begin(), own.end(), [](double w) { return w >= 0.0 && std::isfinite(w); });
    lost_anchors_[i] = length < 0.0 || !is_metric ? 1 : 0;
    weights[i] = lost_anchors_[i] != 0 ? 0.0 : greatest_of(own);
    lengths[i] = std::max(lengths[i], length);
  });
  scale_ = scale_to(kLongRow, greatest_of(lengths));
  const double root = std::sqrt(greatest_of(weights));
  weight_scale_ = scale_to(1.0, root) * scale_to(1.0, root);
}

void StructurePair::read_packed(const Matrix& rows, int64_t row, std::vector<double>& to) const {
  to.resize(dimensions());
  rows.read_row(row, to.data());
  for (int64_t k = 0; k < dimensions(); ++k) {
    to[k] = (to[k] - centre_[k]) * scale_;
  }
}

void StructurePair::pack_anchors() {
  const int64_t depth = depth_of(dimensions());
  x_panels_.reset(new float[padded(anchors()) * depth]);
  x_addends_.assign(padded(anchors()), kNan);
  std::vector<double> squares(padded(anchors()), 0.0);
  for_each_position(anchors(), [&](int64_t i, std::vector<double>& row, std::vector<double>& own) {
    float* to = element_of(x_panels_.get(), depth, i);
    if (i >= anchors() || lost_anchors_[i] != 0) {
      for (int64_t k = 0; k < depth; ++k) {
        to[k * kSearchPanelRows] = 0.0f;
      }
      return;
    }
    read_packed(e_, i, row);
    own.resize(dimensions());
    w_.read_row(i, own.data());
    for (int64_t k = 0; k < dimensions(); ++k) {
      const double weight = own[k] * weight_scale_;
      to[k * kSearchPanelRows] = static_cast<float>(weight);
      to[(dimensions() + k) * kSearchPanelRows] = static_cast<float>(-2.0 * weight * row[k]);
      squares[i] += weight * row[k] * row[k];
    }
    x_addends_[i] = static_cast<float>(squares[i]);
  });
  double least = std::numeric_limits<double>::infinity();
  for (double square : squares) {
    least = square > 0.0 ? std::min(least, square) : least;
  }
  constexpr double kLeastSquares = kLeastPackedNorm * kLeastPackedNorm;
  least_sum_ = least < kLeastSquares ? static_cast<float>(kLeastSquares) : 0.0f;
  x_rows_ = {x_panels_.get(),
             x_addends_.data(),
             nullptr,
             anchors(),
             padded(anchors()) / kSearchPanelRows,
             depth};
}

void StructurePair::pack_references() {
  const int64_t depth = depth_of(dimensions());
  y_panels_.reset(new float[padded(references()) * depth]);
  y_addends_.assign(padded(references()), kNan);
  for_each_position(references(), [&](int64_t j, std::vector<double>& row, std::vector<double>&) {
    float* to = element_of(y_panels_.get(), depth, j);
    const bool is_there = j < references() && lost_references_[j] == 0;
    if (is_there) {
      read_packed(y_, j, row);
      y_addends_[j] = 0.0f;
    } else {
      row.assign(dimensions(), 0.0);
    }
    for (int64_t k = 0; k < dimensions(); ++k) {
      to[k * kSearchPanelRows] = static_cast<float>(row[k] * row[k]);
      to[(dimensions() + k) * kSearchPanelRows] = static_cast<float>(row[k]);
    }
  });
  y_rows_ = {y_panels_.get(),
             y_addends_.data(),
             nullptr,
             references(),
             padded(references()) / kSearchPanelRows,
             depth};
}

WalkTask StructurePair::task(const GradientSums* x, const GradientSums* y) const {
  const PairDistance distance{
      true, !squared_, -1.0f, 0.0f, least_sum_, this, unit(), &StructurePair::distances, nullptr};
  return {x_rows_,
          y_rows_,
          false,
          distance,
          self_.data(),
          x == nullptr ? nullptr : &x->view(),
          y == nullptr ? nullptr : &y->view()};
}

void StructurePair::distances(const void* pair, double unit, int64_t x, int64_t first,
                              const int32_t* columns, int64_t count, float* values) {
  const auto& self = *static_cast<const StructurePair*>(pair);
  thread_local std::vector<double> weights;
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  const int64_t dimensions = self.dimensions();
  for (std::vector<double>* values : {&weights, &row, &other}) {
    values->resize(dimensions);
  }
  self.w_.read_row(x, weights.data());
  self.e_.read_row(x, row.data());
  for (int64_t n = 0; n < count; ++n) {
    self.y_.read_row(first + columns[n], other.data());
    double sum = 0.0;
    for (int64_t k = 0; k < dimensions; ++k) {
      const double difference = row[k] - other[k];
      sum += weights[k] * (difference * difference);
    }
    values[columns[n]] = static_cast<float>((self.squared_ ? sum : std::sqrt(sum)) / unit);
  }
}

StructureGradients::StructureGradients(const StructurePair& pair)
    : pair_(pair),
      x_(pair.x()),
      y_(pair.y()),
      x_near_(lazy_zeros(2 * pair.anchors() * pair.dimensions())),
      y_near_(lazy_zeros(pair.references() * pair.dimensions())) {}

WalkTask StructureGradients::task() const {
  WalkTask task = pair_.task(&x_, &y_);
  task.distance.rows = this;
  task.distance.distances = &StructureGradients::distances;
  task.distance.add_differences = &StructureGradients::add_differences;
  return task;
}

void StructureGradients::distances(const void* gradients, double unit, int64_t x, int64_t first,
                                   const int32_t* columns, int64_t count, float* values) {
  const auto& self = *static_cast<const StructureGradients*>(gradients);
  StructurePair::distances(&self.pair_, unit, x, first, columns, count, values);
}

void StructureGradients::add_differences(const void* gradients, int64_t x, int64_t first,
                                         const int32_t* columns, int64_t count,
                                         const float* weights, float*, float*, int64_t) {
  const auto& self = *static_cast<const StructureGradients*>(gradients);
  const StructurePair& pair = self.pair_;
  thread_local std::vector<double> own;
  thread_local std::vector<double> row;
  thread_local std::vector<double> other;
  const int64_t dimensions = pair.dimensions();
  for (std::vector<double>* values : {&own, &row, &other}) {
    values->resize(dimensions);
  }
  pair.w_.read_row(x, own.data());
  pair.e_.read_row(x, row.data());
  double* __restrict__ const by_e = self.x_near(x);
  double* __restrict__ const by_w = by_e + dimensions;
  for (int64_t n = 0; n < count; ++n) {
    const double weight = weights[columns[n]];
    if (weight == 0.0) {
      continue;
    }
    pair.y_.read_row(first + columns[n], other.data());
    double* __restrict__ const by_y = self.y_near(first + columns[n]);
    for (int64_t k = 0; k < dimensions; ++k) {
      const double difference = row[k] - other[k];
      const double pull = weight * difference;
      by_e[k] += pull;
      by_w[k] += pull * difference;
      by_y[k] += own[k] * pull;
    }
  }
}

// With sums P of weights, of [y y, y] for anchors and of [w, -2 w e] for references:
//   by w: sum P (e - y)^2 = e^2 sum P - 2 e sum P y + sum P y^2,
//   by e: 2 w sum P (e - y),  by y: 2 sum P w (y - e).
// Near pairs have sums of what is before the equals sign: of the rest next to nothing would be
// left.
void StructureGradients::read_anchor(int64_t position, double factor, std::vector<double>& to_e,
                                     std::vector<double>& to_w) const {
  thread_local std::vector<double> row;
  const int64_t dimensions = pair_.dimensions();
  pair_.read_packed(pair_.e_, position, row);
  to_e.resize(dimensions);
  to_w.resize(dimensions);
  pair_.w_.read_row(position, to_w.data());
  const float* sums = x_.view().sums + position * x_.view().stride;
  const double own = x_.view().own[position];
  const double* near = x_near(position);
  const double by_w = factor / (pair_.scale_ * pair_.scale_);
  const double by_e = 2.0 * factor / pair_.scale_;
  for (int64_t k = 0; k < dimensions; ++k) {
    // As the partners were packed: what is rounded alike cancels.
    const double value = static_cast<double>(static_cast<float>(row[k]));
    const double squares = sums[k];
    const double products = sums[dimensions + k];
    to_e[k] = to_w[k] * (by_e * (value * own - products) + 2.0 * factor * near[k]);
    to_w[k] =
        by_w * (value * (value * own - 2.0 * products) + squares) + factor * near[dimensions + k];
  }
}

void StructureGradients::add_reference(int64_t position, double factor,
                                       std::vector<double>& to_y) const {
  thread_local std::vector<double> row;
  const int64_t dimensions = pair_.dimensions();
  pair_.read_packed(pair_.y_, position, row);
  const float* sums = y_.view().sums + position * y_.view().stride;
  const double* near = y_near(position);
  const double by_y = factor / (pair_.scale_ * pair_.weight_scale_);
  for (int64_t k = 0; k < dimensions; ++k) {
    const double value = static_cast<double>(static_cast<float>(row[k]));
    to_y[k] += by_y * (2.0 * value * static_cast<double>(sums[k]) +
                       static_cast<double>(sums[dimensions + k])) -
               2.0 * factor * near[k];
  }
}

void StructureGradients::write(double factor, bool within_batch, const IsLost& anchor_is_lost,
                               const IsLost& reference_is_lost, torch::stable::Tensor& grad_e,
                               torch::stable::Tensor& grad_w,
                               torch::stable::Tensor& grad_references) const {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for_each_position(pair_.anchors(),
                    [&](int64_t i, std::vector<double>& to_e, std::vector<double>& to_w) {
                      if (i >= pair_.anchors()) {
                        return;
                      }
                      if (anchor_is_lost(i)) {
                        to_e.assign(pair_.dimensions(), nan);
                        to_w.assign(pair_.dimensions(), nan);
                      } else if (pair_.lost_anchors_[i] != 0) {
                        to_e.assign(pair_.dimensions(), 0.0);
                        to_w.assign(pair_.dimensions(), 0.0);
                      } else {
                        read_anchor(i, factor, to_e, to_w);
                      }
                      if (within_batch && reference_is_lost(i)) {
                        to_e.assign(pair_.dimensions(), nan);
                      } else if (within_batch && pair_.lost_references_[i] == 0) {
                        add_reference(i, factor, to_e);
                      }
                      write_row(grad_e, i, to_e.data());
                      write_row(grad_w, i, to_w.data());
                    });
  for_each_position(grad_references.size(0),
                    [&](int64_t j, std::vector<double>& to_y, std::vector<double>&) {
                      if (j >= grad_references.size(0)) {
                        return;
                      }
                      to_y.assign(pair_.dimensions(), reference_is_lost(j) ? nan : 0.0);
                      if (pair_.lost_references_[j] == 0) {
                        add_reference(j, factor, to_y);
                      }
                      write_row(grad_references, j, to_y.data());
                    });
}

}  // namespace dmlfast::cpu
