// What the operators of the family structure rely on, on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "operator_checks.h"

namespace dmlfast {

// Embeddings, weights of their dimensions, and references if there are any.
inline void check_structure(const torch::stable::Tensor& e, const torch::stable::Tensor& w,
                            const std::optional<torch::stable::Tensor>& references) {
  check_served("e", e);
  check_matrix("w", w, e);
  STD_TORCH_CHECK(w.size(0) == e.size(0) && w.size(1) == e.size(1), "w: expected the shape of e");
  if (references) {
    check_references(*references, e);
  }
}

inline void check_clusters(const torch::stable::Tensor& e, const torch::stable::Tensor& w,
                           const torch::stable::Tensor& targets, double sharpness) {
  check_structure(e, w, std::nullopt);
  check_array("targets", targets, targets.numel(), torch::headeronly::ScalarType::Double, e);
  STD_TORCH_CHECK(targets.dim() == 1 && targets.size(0) > 0, "targets: expected one at least");
  STD_TORCH_CHECK(sharpness >= 0.0, "sharpness: expected a number of at least 0");
}

// The upstream gradients of the sums of assigned distances.
inline void check_cluster_gradients(const torch::stable::Tensor& grad_loss,
                                    const torch::stable::Tensor& grad_mass,
                                    const torch::stable::Tensor& grad_moment,
                                    const torch::stable::Tensor& e,
                                    const torch::stable::Tensor& targets, bool ordered) {
  using torch::headeronly::ScalarType;
  check_anchor_gradient(grad_loss, ScalarType::Double, e);
  for (const torch::stable::Tensor* grad : {&grad_mass, &grad_moment}) {
    STD_TORCH_CHECK(grad->dim() == 2 && grad->size(0) == (ordered ? e.size(0) : 0) &&
                        grad->size(1) == targets.size(0) &&
                        grad->scalar_type() == ScalarType::Double &&
                        grad->get_device() == e.get_device(),
                    "grad: expected a float64 value per anchor and cluster on the device of e");
  }
}

}  // namespace dmlfast
