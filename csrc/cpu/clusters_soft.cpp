#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "clusters_soft_checks.h"
#include "clusters_soft_isa.h"
#include "engine/block_schedule.h"
#include "engine/gradient_matrix.h"
#include "engine/isa.h"
#include "engine/upstream.h"
#include "engine/walk_pair.h"
#include "metric_name.h"

namespace dmlfast::cpu {

void lower_least(float fall, float factor, double* mass, double* moment) {
  const double shifted = *moment + *mass * static_cast<double>(fall);
  *moment = static_cast<double>(factor) * shifted;
  *mass *= static_cast<double>(factor);
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// In the unit of packed rows. What this makes an exponent of 1 is as close to the one end of
// float32 as this is to the other.
constexpr double kGreatestSharpness = 1e37;

LabelledRows labelled(const Tensor& rows, const Tensor& labels, const Tensor& order) {
  return {Matrix(rows), labels.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>()};
}

// What the operator returns, by row.
template <class T>
struct SoftResults {
  T minimum;
  T mean;
  T mass;  // of exp(-excess over the least distance / temperature)
};

// Rows shared among centres, packed.
class SoftAssignment {
 public:
  SoftAssignment(const LabelledRows& rows, const LabelledRows& centres, const std::string& metric,
                 double temperature)
      : pair_(rows, centres, false, nullptr, metric_of(metric)),
        temperature_(temperature),
        sharpness_(std::min(pair_.unit() / temperature, kGreatestSharpness)) {}

  const WalkPair& pair() const { return pair_; }

  bool is_lost(int64_t position) const { return !pair_.x().is_finite(position); }

  void sum(const SoftResults<double*>& results) const {
    const int64_t padded = pair_.padded_anchors();
    std::vector<float> least(padded, std::numeric_limits<float>::infinity());
    std::vector<double> masses(padded, 0.0);
    std::vector<double> moments(padded, 0.0);
    SoftTask task = empty_task(nullptr, nullptr);
    task.least = least.data();
    task.masses = masses.data();
    task.moments = moments.data();
    run(task);
    for (int64_t i = 0; i < pair_.anchors().rows.rows(); ++i) {
      const int64_t row = pair_.anchors().order[i];
      double lowest = is_lost(i) ? std::numeric_limits<double>::quiet_NaN() : kInfinity;
      double average = lowest;
      if (masses[i] > 0.0) {
        const double nearest = static_cast<double>(least[i]) * pair_.unit();
        lowest = nearest - temperature_ * std::log(masses[i]);
        average = nearest + moments[i] / masses[i] * pair_.unit();
      }
      results.minimum[row] = lowest;
      results.mean[row] = average;
      results.mass[row] = masses[i];
    }
  }

  // Adds up the gradients of the packed rows for upstream gradients by row, and returns what they
  // are to be multiplied by.
  double add_gradients(const std::vector<double>& grad_minimum,
                       const std::vector<double>& grad_mean,
                       const SoftResults<std::vector<double>>& results, const GradientRows& x,
                       const GradientRows& y) const {
    const double divisor = common_divisor(grad_minimum, grad_mean);
    // A row without centres has no distances to weigh.
    std::vector<double> nearest(results.minimum);
    std::vector<double> logarithms(results.mass.size(), 0.0);
    for (size_t i = 0; i < nearest.size(); ++i) {
      if (results.mass[i] > 0.0) {
        logarithms[i] = std::log(results.mass[i]);
        nearest[i] += temperature_ * logarithms[i];
      }
    }
    // In the unit of packed rows the least distance was a float32 number, which rounding restores,
    // and what a great temperature takes off is added again to the bit.
    const std::vector<float> leasts = by_position(nearest, pair_.unit());
    const std::vector<float> log_masses = by_position(logarithms, 1.0);
    const std::vector<float> means = by_position(results.mean, pair_.unit());
    const std::vector<float> low_means = remainders(results.mean, pair_.unit(), means);
    const std::vector<float> minimum_weights = by_position(grad_minimum, divisor);
    const std::vector<float> mean_weights = by_position(grad_mean, divisor);
    SoftTask task = empty_task(&x, &y);
    task.leasts = leasts.data();
    task.log_masses = log_masses.data();
    task.means = means.data();
    task.low_means = low_means.data();
    task.minimum_weights = minimum_weights.data();
    task.mean_weights = mean_weights.data();
    run(task);
    return divisor * pair_.unit() * pair_.scale();
  }

 private:
  SoftTask empty_task(const GradientRows* x, const GradientRows* y) const {
    return {pair_.task(x, y),
            pair_.class_begin(),
            pair_.class_end(),
            static_cast<float>(sharpness_),
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr};
  }

  std::vector<float> by_position(const std::vector<double>& values, double divisor) const {
    std::vector<float> result(pair_.padded_anchors(), 0.0f);
    for (size_t i = 0; i < values.size(); ++i) {
      result[i] = static_cast<float>(values[pair_.anchors().order[i]] / divisor);
    }
    return result;
  }

  // What by_position rounds off; 0 where that is not finite.
  std::vector<float> remainders(const std::vector<double>& values, double divisor,
                                const std::vector<float>& rounded) const {
    std::vector<float> result(rounded.size(), 0.0f);
    for (size_t i = 0; i < values.size(); ++i) {
      const double value = values[pair_.anchors().order[i]] / divisor;
      result[i] = std::isfinite(rounded[i]) ? static_cast<float>(value - rounded[i]) : 0.0f;
    }
    return result;
  }

  static void run(const SoftTask& task) {
    const SoftFunction share_out = DMLFAST_OF_ISA(clusters_soft);
    meet_all(task.walk, [&](Span x, Span y) { share_out(task, x, y); });
  }

  WalkPair pair_;
  double temperature_;
  double sharpness_;
};

std::tuple<Tensor, Tensor, Tensor> clusters_soft(Tensor x, Tensor labels, Tensor order,
                                                 Tensor centers, Tensor center_labels,
                                                 Tensor center_order, std::string metric,
                                                 double temperature, bool) {
  check_soft(x, labels, order, centers, center_labels, center_order, temperature);
  Tensor minimum = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  Tensor mean = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  Tensor mass = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  SoftAssignment(labelled(x, labels, order), labelled(centers, center_labels, center_order), metric,
                 temperature)
      .sum({minimum.mutable_data_ptr<double>(), mean.mutable_data_ptr<double>(),
            mass.mutable_data_ptr<double>()});
  return {minimum, mean, mass};
}

std::tuple<Tensor, Tensor> clusters_soft_backward(Tensor grad_minimum, Tensor grad_mean,
                                                  Tensor minimum, Tensor mean, Tensor mass,
                                                  Tensor x, Tensor labels, Tensor order,
                                                  Tensor centers, Tensor center_labels,
                                                  Tensor center_order, std::string metric,
                                                  double temperature, bool) {
  check_soft(x, labels, order, centers, center_labels, center_order, temperature);
  check_soft_gradient(grad_minimum, grad_mean, minimum, mean, mass, x);
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_centers = torch::stable::new_empty(centers, {centers.size(0), x.size(1)});
  const SoftAssignment soft(labelled(x, labels, order),
                            labelled(centers, center_labels, center_order), metric, temperature);
  const WalkPair& pair = soft.pair();
  const std::vector<double> to_minimum = read_column(grad_minimum);
  const std::vector<double> to_mean = read_column(grad_mean);
  GradientMatrix x_gradient(pair.x());
  GradientMatrix y_gradient(pair.y());
  const double factor = soft.add_gradients(
      to_minimum, to_mean, {read_column(minimum), read_column(mean), read_column(mass)},
      x_gradient.view(), y_gradient.view());
  const auto is_lost = [&](int64_t position) {
    const int64_t row = pair.anchors().order[position];
    return soft.is_lost(position) && (to_minimum[row] != 0.0 || to_mean[row] != 0.0);
  };
  x_gradient.write(pair.anchors(), pair.metric(), factor, is_lost, grad_x);
  y_gradient.write(
      pair.references(), pair.metric(), factor, [](int64_t) { return false; }, grad_centers);
  return {grad_x, grad_centers};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("clusters_soft", TORCH_BOX(&dmlfast::cpu::clusters_soft));
  m.impl("clusters_soft_backward", TORCH_BOX(&dmlfast::cpu::clusters_soft_backward));
}
