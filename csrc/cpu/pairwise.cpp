#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "engine/block_schedule.h"
#include "engine/gradient_matrix.h"
#include "engine/isa.h"
#include "engine/lost_pairs.h"
#include "engine/matrix.h"
#include "engine/unit_factors.h"
#include "engine/upstream.h"
#include "engine/walk_pair.h"
#include "metric_name.h"
#include "pairwise_checks.h"
#include "pairwise_isa.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows without labels, packed in their own order.
class Rows {
 public:
  Rows(const Tensor& x, const std::optional<Tensor>& references, const int64_t* self_index,
       bool excludes_self, const std::string& metric, double length = WalkPair::kLongRow)
      : numbers_(std::max(x.size(0), references ? references->size(0) : 0)),
        zeros_(numbers_.size(), 0) {
    std::iota(numbers_.begin(), numbers_.end(), 0);
    const LabelledRows anchors{Matrix(x), zeros_.data(), numbers_.data()};
    const LabelledRows others{Matrix(references ? *references : x), zeros_.data(), numbers_.data()};
    pair_ = std::make_unique<WalkPair>(anchors, others, !references, self_index, metric_of(metric),
                                       length);
    if (!excludes_self) {
      pair_->keep_self();
    }
  }

  const WalkPair& pair() const { return *pair_; }

 private:
  std::vector<int64_t> numbers_;
  std::vector<int64_t> zeros_;
  std::unique_ptr<WalkPair> pair_;
};

// The gradients of both sides of a walk.
class Gradients {
 public:
  explicit Gradients(const WalkPair& pair) : pair_(pair), x_(pair.x()) {
    if (!pair.is_symmetric()) {
      y_.emplace(pair.y());
    }
  }

  WalkTask task() const { return pair_.task(&x_.view(), y_ ? &y_->view() : nullptr); }

  // Rounds the gradients, times `factor`; NaN at the positions that are lost.
  std::tuple<Tensor, Tensor> write(const Tensor& x, double factor,
                                   const std::function<bool(int64_t)>& x_is_lost,
                                   const std::function<bool(int64_t)>& y_is_lost) const {
    Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
    Tensor grad_references = torch::stable::new_empty(x, {y_ ? pair_.y().rows() : 0, x.size(1)});
    x_.write(pair_.anchors(), pair_.metric(), factor, x_is_lost, grad_x);
    if (y_) {
      y_->write(pair_.references(), pair_.metric(), factor, y_is_lost, grad_references);
    }
    return {grad_x, grad_references};
  }

  const GradientMatrix& x() const { return x_; }
  const GradientMatrix& y() const { return *y_; }

 private:
  const WalkPair& pair_;
  GradientMatrix x_;
  std::optional<GradientMatrix> y_;
};

Tensor pairwise_distance(Tensor x, std::optional<Tensor> references, std::string metric, bool) {
  check_pairwise(x, references);
  const Rows rows(x, references, nullptr, false, metric);
  const WalkPair& pair = rows.pair();
  Tensor distance = torch::stable::new_empty(x, {x.size(0), pair.y().rows()}, ScalarType::Float);
  const UnitFactors factors(pair.unit());
  DistanceTask task{pair.task(nullptr, nullptr),
                    factors.unit_high,
                    factors.unit_low,
                    factors.packed_high,
                    factors.packed_low,
                    static_cast<float*>(distance.mutable_data_ptr()),
                    pair.y().rows(),
                    nullptr,
                    0,
                    0};
  task.walk.distance.near_unit = 1.0;
  const DistanceFunction store = DMLFAST_OF_ISA(pairwise_distances);
  meet_all(task.walk, [&](Span a, Span b) { store(task, a, b); });
  return distance;
}

std::tuple<Tensor, Tensor> pairwise_distance_backward(Tensor grad, Tensor distance, Tensor x,
                                                      std::optional<Tensor> references,
                                                      std::string metric, bool) {
  check_pairwise(x, references);
  const int64_t columns = references ? references->size(0) : x.size(0);
  check_distance_gradient(grad, distance, x, columns);
  const Rows rows(x, references, nullptr, false, metric);
  const WalkPair& pair = rows.pair();
  const Gradients gradients(pair);
  const UnitFactors factors(pair.unit());
  const DistanceTask task{gradients.task(),
                          factors.unit_high,
                          factors.unit_low,
                          factors.packed_high,
                          factors.packed_low,
                          static_cast<float*>(distance.mutable_data_ptr()),
                          columns,
                          static_cast<const float*>(grad.const_data_ptr()),
                          grad.stride(0),
                          grad.stride(1)};
  const DistanceFunction weigh = DMLFAST_OF_ISA(pairwise_distances);
  meet_all(task.walk, [&](Span a, Span b) { weigh(task, a, b); });
  return gradients.write(
      x, pair.metric() == Metric::euclidean ? 1.0 : 1.0 / pair.scale(),
      [&](int64_t i) { return gradients.x().has_nan(i); },
      [&](int64_t j) { return gradients.y().has_nan(j); });
}

// Rows are their own positions.
LostPairs lost_pairs(const WalkPair& pair, const std::vector<uint8_t>& is_wanted) {
  std::vector<uint8_t> anchors(pair.x().rows());
  std::vector<uint8_t> references(pair.y().rows());
  for (size_t i = 0; i < anchors.size(); ++i) {
    anchors[i] = pair.x().is_finite(i) ? 0 : 1;
  }
  for (size_t j = 0; j < references.size(); ++j) {
    references[j] = pair.y().is_finite(j) ? 0 : 1;
  }
  return {anchors, references, pair.self(), is_wanted};
}

// What both operators of the moments share.
class Moments {
 public:
  Moments(const Tensor& x, const std::optional<Tensor>& references,
          const std::optional<Tensor>& self_index, const Tensor& centre, const std::string& metric)
      : rows_(x, references, self_index ? self_index->const_data_ptr<int64_t>() : nullptr, true,
              metric, 1.0),
        centre_(static_cast<float>(*centre.const_data_ptr<double>() / pair().unit())),
        first_(pair().padded_anchors(), 0.0),
        second_(first_),
        first_weights_(first_.size(), 0.0f),
        second_weights_(first_weights_) {}

  const WalkPair& pair() const { return rows_.pair(); }

  void run(const WalkTask& walk) {
    const MomentTask task{walk,
                          centre_,
                          first_.data(),
                          second_.data(),
                          first_weights_.data(),
                          second_weights_.data()};
    const MomentFunction add = DMLFAST_OF_ISA(pairwise_moments);
    meet_all(task.walk, [&](Span a, Span b) { add(task, a, b); });
  }

  // Returns the power of two that the weights were divided by.
  double weigh(std::vector<double> first, std::vector<double> second) {
    const double unit = pair().unit();
    for (size_t i = 0; i < first.size(); ++i) {
      first[i] *= unit;
      second[i] *= unit * unit;
    }
    const double divisor = common_divisor(first, second);
    for (size_t i = 0; i < first.size(); ++i) {
      first_weights_[i] = static_cast<float>(first[i] / divisor);
      second_weights_[i] = static_cast<float>(second[i] / divisor);
    }
    return divisor;
  }

  void write(Tensor& first, Tensor& second) const {
    const std::vector<uint8_t> all(pair().x().rows(), 1);
    const LostPairs lost = lost_pairs(pair(), all);
    for (int64_t i = 0; i < pair().x().rows(); ++i) {
      const double unit =
          lost.has_anchor(i) ? std::numeric_limits<double>::quiet_NaN() : pair().unit();
      first.mutable_data_ptr<double>()[i] = unit * first_[i];
      second.mutable_data_ptr<double>()[i] = unit * unit * second_[i];
    }
  }

 private:
  Rows rows_;
  float centre_;
  std::vector<double> first_;
  std::vector<double> second_;
  std::vector<float> first_weights_;
  std::vector<float> second_weights_;
};

std::tuple<Tensor, Tensor> pairwise_moments(Tensor x, std::optional<Tensor> references,
                                            std::optional<Tensor> self_index, Tensor centre,
                                            std::string metric, bool) {
  check_moments(x, references, self_index, centre);
  Tensor first = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  Tensor second = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  Moments moments(x, references, self_index, centre, metric);
  moments.run(moments.pair().task(nullptr, nullptr));
  moments.write(first, second);
  return {first, second};
}

std::tuple<Tensor, Tensor> pairwise_moments_backward(Tensor grad_first, Tensor grad_second,
                                                     Tensor x, std::optional<Tensor> references,
                                                     std::optional<Tensor> self_index,
                                                     Tensor centre, std::string metric, bool) {
  check_moments(x, references, self_index, centre);
  for (const Tensor* grad : {&grad_first, &grad_second}) {
    check_anchor_gradient(*grad, ScalarType::Double, x);
  }
  Moments moments(x, references, self_index, centre, metric);
  const std::vector<double> first = read_column(grad_first);
  const std::vector<double> second = read_column(grad_second);
  const double divisor = moments.weigh(first, second);
  const Gradients gradients(moments.pair());
  moments.run(gradients.task());
  std::vector<uint8_t> is_wanted(first.size());
  for (size_t i = 0; i < first.size(); ++i) {
    is_wanted[i] = first[i] != 0.0 || second[i] != 0.0 ? 1 : 0;
  }
  const LostPairs lost = lost_pairs(moments.pair(), is_wanted);
  const auto has_row = [&](int64_t i) {  // within a batch an anchor is a reference of others, too
    return lost.has_anchor(i) || (!references && lost.has_reference(i));
  };
  return gradients.write(x, divisor * moments.pair().scale(), has_row,
                         [&](int64_t j) { return lost.has_reference(j); });
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("pairwise_distance", TORCH_BOX(&dmlfast::cpu::pairwise_distance));
  m.impl("pairwise_distance_backward", TORCH_BOX(&dmlfast::cpu::pairwise_distance_backward));
  m.impl("pairwise_moments", TORCH_BOX(&dmlfast::cpu::pairwise_moments));
  m.impl("pairwise_moments_backward", TORCH_BOX(&dmlfast::cpu::pairwise_moments_backward));
}
