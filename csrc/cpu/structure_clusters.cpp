#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/block_schedule.h"
#include "engine/isa.h"
#include "engine/lost_pairs.h"
#include "engine/upstream.h"
#include "structure_checks.h"
#include "structure_clusters_isa.h"
#include "structure_pair.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// In the unit of packed rows; beyond, a pair has one cluster, but for ties.
constexpr double kGreatestSharpness = 1e30;

// The sums of a batch by anchor, or what they are multiplied by in a gradient.
class Clusters {
 public:
  Clusters(const Tensor& e, const Tensor& w, const Tensor& targets, double sharpness, bool ordered)
      : pair_(e, w, std::nullopt, false, true),
        sharpness_(static_cast<float>(std::min(sharpness * pair_.unit(), kGreatestSharpness))),
        ordered_(ordered) {
    for (double target : read_column(targets)) {
      targets_.push_back(static_cast<float>(target / pair_.unit()));
      has_targets_ = has_targets_ && std::isfinite(target);
    }
  }

  const StructurePair& pair() const { return pair_; }
  int64_t clusters() const { return static_cast<int64_t>(targets_.size()); }

  // Without a target no pair has a loss.
  LostPairs lost(const std::vector<uint8_t>& is_wanted) const {
    std::vector<uint8_t> references = pair_.lost_references();
    if (!has_targets_) {
      references.assign(references.size(), 1);
    }
    return {pair_.lost_anchors(), std::move(references), pair_.self(), is_wanted};
  }

  void sum(Tensor& loss, Tensor& mass, Tensor& moment) {
    const int64_t padded = pair_.padded_anchors();
    std::vector<double> losses(padded, 0.0);
    std::vector<double> masses(ordered_ ? padded * clusters() : 0, 0.0);
    std::vector<double> moments(masses.size(), 0.0);
    ClusterTask task = empty_task(pair_.task(nullptr, nullptr));
    task.losses = losses.data();
    task.masses = ordered_ ? masses.data() : nullptr;
    task.moments = moments.data();
    run(task);
    const std::vector<uint8_t> all(pair_.anchors(), 1);
    const LostPairs lost = this->lost(all);
    for (int64_t i = 0; i < pair_.anchors(); ++i) {
      const double none = lost.has_anchor(i) ? kNan : 0.0;
      loss.mutable_data_ptr<double>()[i] = losses[i] * pair_.unit() + none;
      for (int64_t k = i * clusters(); k < (i + 1) * clusters() && ordered_; ++k) {
        mass.mutable_data_ptr<double>()[k] = masses[k] + none;
        moment.mutable_data_ptr<double>()[k] = moments[k] * pair_.unit() + none;
      }
    }
  }

  // Upstream gradients by anchor, and by anchor and cluster; returns what the sums of the gradients
  // are to be multiplied by.
  double add_gradients(std::vector<double> loss, std::vector<double> mass,
                       const std::vector<double>& moment, const StructureGradients& gradients) {
    for (double& value : mass) {
      value /= pair_.unit();
    }
    loss.resize(pair_.padded_anchors(), 0.0);
    std::vector<double> both = mass;
    both.insert(both.end(), moment.begin(), moment.end());
    const double divisor = common_divisor(loss, both);
    const std::vector<float> loss_weights = rounded(loss, divisor);
    const std::vector<float> mass_weights = rounded(mass, divisor);
    const std::vector<float> moment_weights = rounded(moment, divisor);
    ClusterTask task = empty_task(gradients.task());
    task.loss_weights = loss_weights.data();
    task.mass_weights = ordered_ ? mass_weights.data() : nullptr;
    task.moment_weights = moment_weights.data();
    run(task);
    // The loops weigh differences y - x: by minus twice the derivative by the square.
    return -0.5 * divisor / pair_.unit();
  }

 private:
  ClusterTask empty_task(const WalkTask& walk) const {
    return {walk,    targets_.data(), clusters(), sharpness_, nullptr,
            nullptr, nullptr,         nullptr,    nullptr,    nullptr};
  }

  // Padded by whole panels of anchors.
  std::vector<float> rounded(const std::vector<double>& values, double divisor) const {
    std::vector<float> result(std::max<size_t>(values.size(), pair_.padded_anchors() * clusters()),
                              0.0f);
    for (size_t i = 0; i < values.size(); ++i) {
      result[i] = static_cast<float>(values[i] / divisor);
    }
    return result;
  }

  static void run(const ClusterTask& task) {
    const ClusterFunction add = DMLFAST_OF_ISA(structure_clusters);
    meet_all(task.walk, [&](Span x, Span y) { add(task, x, y); });
  }

  StructurePair pair_;
  float sharpness_;
  bool ordered_;
  bool has_targets_ = true;
  std::vector<float> targets_;
};

std::tuple<Tensor, Tensor, Tensor> structure_clusters(Tensor e, Tensor w, Tensor targets,
                                                      double sharpness, bool ordered) {
  check_clusters(e, w, targets, sharpness);
  const int64_t rows = ordered ? e.size(0) : 0;
  Tensor loss = torch::stable::new_empty(e, {e.size(0)}, ScalarType::Double);
  Tensor mass = torch::stable::new_empty(e, {rows, targets.size(0)}, ScalarType::Double);
  Tensor moment = torch::stable::new_empty(e, {rows, targets.size(0)}, ScalarType::Double);
  Clusters(e, w, targets, sharpness, ordered).sum(loss, mass, moment);
  return {loss, mass, moment};
}

// A row-major copy of an (N, K) upstream gradient of any strides.
std::vector<double> read_rows(const Tensor& grad) {
  std::vector<double> values(grad.numel());
  const Matrix rows(grad);
  for (int64_t i = 0; i < rows.rows(); ++i) {
    rows.read_row(i, values.data() + i * rows.columns());
  }
  return values;
}

std::tuple<Tensor, Tensor> structure_clusters_backward(Tensor grad_loss, Tensor grad_mass,
                                                       Tensor grad_moment, Tensor e, Tensor w,
                                                       Tensor targets, double sharpness,
                                                       bool ordered) {
  check_clusters(e, w, targets, sharpness);
  check_cluster_gradients(grad_loss, grad_mass, grad_moment, e, targets, ordered);
  Tensor grad_e = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  Tensor grad_w = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  Tensor no_references = torch::stable::new_empty(e, {0, e.size(1)});
  Clusters clusters(e, w, targets, sharpness, ordered);
  const std::vector<double> loss = read_column(grad_loss);
  const std::vector<double> mass = read_rows(grad_mass);
  const std::vector<double> moment = read_rows(grad_moment);
  const StructureGradients gradients(clusters.pair());
  const double factor = clusters.add_gradients(loss, mass, moment, gradients);
  std::vector<uint8_t> is_wanted(loss.size());
  for (size_t i = 0; i < loss.size(); ++i) {
    is_wanted[i] = loss[i] != 0.0 ? 1 : 0;
  }
  for (size_t k = 0; k < mass.size(); ++k) {
    is_wanted[k / clusters.clusters()] |= mass[k] != 0.0 || moment[k] != 0.0 ? 1 : 0;
  }
  const LostPairs lost = clusters.lost(is_wanted);
  gradients.write(
      factor, true, [&](int64_t i) { return lost.has_anchor(i); },
      [&](int64_t j) { return lost.has_anchor(j) || lost.has_reference(j); }, grad_e, grad_w,
      no_references);
  return {grad_e, grad_w};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("structure_clusters", TORCH_BOX(&dmlfast::cpu::structure_clusters));
  m.impl("structure_clusters_backward", TORCH_BOX(&dmlfast::cpu::structure_clusters_backward));
}
