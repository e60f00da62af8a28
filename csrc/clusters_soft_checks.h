// What the operators of soft assignment rely on, on any device.
#pragma once

#include <optional>

#include "operator_checks.h"

namespace dmlfast {

inline void check_soft(const torch::stable::Tensor& x, const torch::stable::Tensor& labels,
                       const torch::stable::Tensor& order, const torch::stable::Tensor& centers,
                       const torch::stable::Tensor& center_labels,
                       const torch::stable::Tensor& center_order, double temperature) {
  check_served("x", x);
  check_labelled(x, labels, order, centers, center_labels, center_order, std::nullopt);
  STD_TORCH_CHECK(temperature > 0.0, "temperature: expected a number greater than 0");
}

inline void check_soft_gradient(const torch::stable::Tensor& grad_minimum,
                                const torch::stable::Tensor& grad_mean,
                                const torch::stable::Tensor& minimum,
                                const torch::stable::Tensor& mean,
                                const torch::stable::Tensor& mass, const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  check_anchor_gradient(grad_minimum, ScalarType::Double, x);
  check_anchor_gradient(grad_mean, ScalarType::Double, x);
  check_array("minimum", minimum, x.size(0), ScalarType::Double, x);
  check_array("mean", mean, x.size(0), ScalarType::Double, x);
  check_array("mass", mass, x.size(0), ScalarType::Double, x);
}

}  // namespace dmlfast
