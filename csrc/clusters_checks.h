// What the operators of the family clusters rely on, on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "operator_checks.h"

namespace dmlfast {

inline void check_cluster_means(const torch::stable::Tensor& x, const torch::stable::Tensor& index,
                                int64_t clusters) {
  check_matrix("x", x, x);
  check_array("index", index, x.size(0), torch::headeronly::ScalarType::Long, x);
  STD_TORCH_CHECK(clusters >= 0, "clusters: expected at least 0, got ", clusters);
}

inline void check_kmeans(const torch::stable::Tensor& x, const torch::stable::Tensor& initial,
                         int64_t iterations) {
  using torch::headeronly::ScalarType;
  check_matrix("x", x, x);
  check_matrix("initial", initial, x);
  STD_TORCH_CHECK(initial.size(1) == x.size(1), "initial: expected ", x.size(1),
                  " dimensions, got ", initial.size(1));
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x: expected float32 or float64");
  STD_TORCH_CHECK(iterations >= 0, "iterations: expected at least 0, got ", iterations);
}

inline void check_seeds(const torch::stable::Tensor& x, const torch::stable::Tensor& uniform) {
  check_matrix("x", x, x);
  check_array("uniform", uniform, uniform.numel(), torch::headeronly::ScalarType::Double, x);
}

}  // namespace dmlfast
