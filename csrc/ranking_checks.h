// What the operators of the family ranking rely on, on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <string>

#include "operator_checks.h"
#include "ranking_form.h"

namespace dmlfast {

inline RankingForm ranking_form(double margin, double scale, const std::string& pairs) {
  STD_TORCH_CHECK(pairs == "all" || pairs == "adjacent" || pairs == "band",
                  "pairs: expected 'all', 'adjacent' or 'band', got '", pairs, "'");
  STD_TORCH_CHECK(std::isfinite(margin), "margin: expected a finite number");
  STD_TORCH_CHECK(scale > 0.0 && std::isfinite(scale),
                  "scale: expected a finite number greater than 0");
  return {margin, scale,
          pairs == "all"        ? RankingPairs::all
          : pairs == "adjacent" ? RankingPairs::adjacent
                                : RankingPairs::band};
}

inline void check_similarities(const torch::stable::Tensor& similarities) {
  check_served("similarities", similarities);
}

// A value of any floating dtype per row.
inline void check_row_gradient(const torch::stable::Tensor& grad,
                               const torch::stable::Tensor& similarities) {
  STD_TORCH_CHECK(grad.dim() == 1 && grad.size(0) == similarities.size(0),
                  "grad: expected a value per row");
  STD_TORCH_CHECK(grad.get_device() == similarities.get_device(),
                  "grad: expected the device of similarities");
}

// Projected rows, the shifts that are added to them, and what they are compared with.
inline void check_synthesis(const torch::stable::Tensor& projected,
                            const torch::stable::Tensor& shifts,
                            const std::optional<torch::stable::Tensor>& targets) {
  check_matrix("projected", projected, projected);
  check_matrix("shifts", shifts, projected);
  STD_TORCH_CHECK(projected.scalar_type() == torch::headeronly::ScalarType::Float,
                  "projected: expected float32; the reference serves float64");
  STD_TORCH_CHECK(shifts.size(1) == projected.size(1), "shifts: expected ", projected.size(1),
                  " dimensions, got ", shifts.size(1));
  if (targets) {
    check_matrix("targets", *targets, projected);
    STD_TORCH_CHECK(targets->size(0) == projected.size(0) && targets->size(1) == projected.size(1),
                    "targets: expected the shape of projected");
  }
}

inline void check_synthesis_gradient(const torch::stable::Tensor& grad,
                                     const torch::stable::Tensor& projected,
                                     const torch::stable::Tensor& shifts) {
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == projected.size(0) &&
                      grad.size(1) == shifts.size(0) &&
                      grad.scalar_type() == torch::headeronly::ScalarType::Float,
                  "grad: expected the shape and dtype of the similarities");
  STD_TORCH_CHECK(grad.get_device() == projected.get_device(),
                  "grad: expected the device of projected");
}

}  // namespace dmlfast
