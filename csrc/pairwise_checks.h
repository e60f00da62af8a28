// What the operators of the family pairwise rely on, on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "operator_checks.h"

namespace dmlfast {

inline void check_pairwise(const torch::stable::Tensor& x,
                           const std::optional<torch::stable::Tensor>& references) {
  check_served("x", x);
  if (references) {
    check_references(*references, x);
  }
}

inline void check_moments(const torch::stable::Tensor& x,
                          const std::optional<torch::stable::Tensor>& references,
                          const std::optional<torch::stable::Tensor>& self_index,
                          const torch::stable::Tensor& centre) {
  using torch::headeronly::ScalarType;
  check_pairwise(x, references);
  STD_TORCH_CHECK(references || !self_index, "self_index: expected none without references");
  check_array("centre", centre, 1, ScalarType::Double, x);
  if (self_index) {
    check_array("self_index", *self_index, x.size(0), ScalarType::Long, x);
  }
}

}  // namespace dmlfast
