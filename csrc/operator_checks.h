// What the operators rely on, checked once where they are entered: a call that bypasses the Python
// functions with wrong shapes or dtypes gets an error. What indices and orders hold is trusted.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

namespace dmlfast {

inline void check_matrix(const char* name, const torch::stable::Tensor& tensor,
                         const torch::stable::Tensor& like) {
  STD_TORCH_CHECK(tensor.dim() == 2, name, ": expected a 2-D tensor, got ", tensor.dim(), "-D");
  using torch::headeronly::ScalarType;
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Float || dtype == ScalarType::Double,
                  name, ": expected float16, bfloat16, float32 or float64");
  STD_TORCH_CHECK(dtype == like.scalar_type(), name, ": expected the dtype of x");
  STD_TORCH_CHECK(tensor.get_device() == like.get_device(), name, ": expected the device of x");
}

// A contiguous tensor of a dtype and a number of elements on the device of `like`.
inline void check_array(const char* name, const torch::stable::Tensor& tensor, int64_t elements,
                        torch::headeronly::ScalarType dtype, const torch::stable::Tensor& like) {
  STD_TORCH_CHECK(tensor.numel() == elements, name, ": expected ", elements, " elements, got ",
                  tensor.numel());
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected another dtype");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
  STD_TORCH_CHECK(tensor.get_device() == like.get_device(), name, ": expected the device of x");
}

// A matrix that the kernels take, which serve no float64.
inline void check_served(const char* name, const torch::stable::Tensor& tensor) {
  check_matrix(name, tensor, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() != torch::headeronly::ScalarType::Double, name,
                  ": expected float16, bfloat16 or float32; the reference serves float64");
}

inline void check_references(const torch::stable::Tensor& references,
                             const torch::stable::Tensor& like) {
  check_matrix("references", references, like);
  STD_TORCH_CHECK(references.size(1) == like.size(1), "references: expected ", like.size(1),
                  " dimensions, got ", references.size(1));
}

// The upstream gradient of a matrix of distances, and these.
inline void check_distance_gradient(const torch::stable::Tensor& grad,
                                    const torch::stable::Tensor& distance,
                                    const torch::stable::Tensor& anchors, int64_t references) {
  using torch::headeronly::ScalarType;
  check_array("distance", distance, anchors.size(0) * references, ScalarType::Float, anchors);
  STD_TORCH_CHECK(distance.dim() == 2 && distance.size(0) == anchors.size(0),
                  "distance: expected a row for every anchor");
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == anchors.size(0) &&
                      grad.size(1) == references && grad.scalar_type() == ScalarType::Float,
                  "grad: expected the shape and dtype of the distances");
  STD_TORCH_CHECK(grad.get_device() == anchors.get_device(),
                  "grad: expected the device of the anchors");
}

// An upstream gradient by anchor.
inline void check_anchor_gradient(const torch::stable::Tensor& grad,
                                  torch::headeronly::ScalarType dtype,
                                  const torch::stable::Tensor& anchors) {
  STD_TORCH_CHECK(grad.dim() == 1 && grad.size(0) == anchors.size(0) &&
                      grad.scalar_type() == dtype && grad.get_device() == anchors.get_device(),
                  "grad: expected a value per anchor, of the result's dtype and device");
}

// Anchors and references with their labels, the orders that sort these, and the anchors' selves.
inline void check_labelled(const torch::stable::Tensor& x, const torch::stable::Tensor& labels,
                           const torch::stable::Tensor& order,
                           const torch::stable::Tensor& references,
                           const torch::stable::Tensor& reference_labels,
                           const torch::stable::Tensor& reference_order,
                           const std::optional<torch::stable::Tensor>& self_index) {
  using torch::headeronly::ScalarType;
  check_matrix("x", x, x);
  check_references(references, x);
  check_array("labels", labels, x.size(0), ScalarType::Long, x);
  check_array("order", order, x.size(0), ScalarType::Long, x);
  check_array("reference_labels", reference_labels, references.size(0), ScalarType::Long, x);
  check_array("reference_order", reference_order, references.size(0), ScalarType::Long, x);
  if (self_index) {
    check_array("self_index", *self_index, x.size(0), ScalarType::Long, x);
  }
}

// The arguments of the gradient of a selection.
inline void check_selected(const torch::stable::Tensor& grad, const torch::stable::Tensor& x,
                           const torch::stable::Tensor& references,
                           const torch::stable::Tensor& index,
                           const torch::stable::Tensor& slot_order) {
  using torch::headeronly::ScalarType;
  check_matrix("x", x, x);
  check_references(references, x);
  STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == x.size(0),
                  "index: expected a row for every row of x");
  check_array("index", index, index.numel(), ScalarType::Long, x);
  check_array("slot_order", slot_order, index.numel(), ScalarType::Long, x);
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == index.size(0) && grad.size(1) == index.size(1),
                  "grad: expected the shape of index");
  STD_TORCH_CHECK(grad.get_device() == x.get_device(), "grad: expected the device of x");
  STD_TORCH_CHECK(grad.scalar_type() == (x.scalar_type() == ScalarType::Double ? ScalarType::Double
                                                                               : ScalarType::Float),
                  "grad: expected the dtype of the distances");
}

}  // namespace dmlfast
