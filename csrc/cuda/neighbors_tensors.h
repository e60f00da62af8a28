// From torch's tensors to labelled pairs.
#pragma once

#include <optional>

#include "neighbors_pairs.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

// What is returned of a distance.
inline torch::headeronly::ScalarType distance_dtype(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// `norms` are float64, of all rows of both.
inline LabelledPairs labelled_pairs(
    const torch::stable::Tensor& x, const torch::stable::Tensor& labels,
    const torch::stable::Tensor& order, const torch::stable::Tensor& references,
    const torch::stable::Tensor& reference_labels, const torch::stable::Tensor& reference_order,
    const std::optional<torch::stable::Tensor>& self_index, Metric metric,
    torch::stable::Tensor& norms, torch::stable::Tensor& distance, torch::stable::Tensor& index) {
  LabelledPairs pairs{};
  pairs.x = any_rows_of(x);
  pairs.references = any_rows_of(references);
  pairs.labels = labels.const_data_ptr<int64_t>();
  pairs.order = order.const_data_ptr<int64_t>();
  pairs.reference_labels = reference_labels.const_data_ptr<int64_t>();
  pairs.reference_order = reference_order.const_data_ptr<int64_t>();
  pairs.self_index = self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
  pairs.metric = metric;
  pairs.norms_x = static_cast<double*>(norms.mutable_data_ptr());
  pairs.norms_references = pairs.norms_x + x.size(0);
  pairs.distance = distance.mutable_data_ptr();
  pairs.index = static_cast<int64_t*>(index.mutable_data_ptr());
  return pairs;
}

}  // namespace dmlfast::cuda
