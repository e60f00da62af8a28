#include "pairwise.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "metric_name.h"
#include "pairwise_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The rows of all operators of the family, checked.
struct RowTensors {
  Tensor x;
  std::optional<Tensor> references;
  std::string metric;
  bool fast;

  const Tensor& others() const { return references ? *references : x; }

  void check() const {
    check_pairwise(x, references);
    check_count("x: rows", x.size(0));
    check_count("references: rows", others().size(0));
  }

  PairwiseRows rows() const {
    PairwiseRows rows{};
    rows.x = any_rows_of(x);
    rows.references = any_rows_of(others());
    rows.within_batch = !references;
    rows.metric = metric_of(metric);
    rows.fast = fast;
    rows.shared_bytes = shared_bytes_of(x);
    return rows;
  }

  // Both gradients; within a batch that of the references has no rows.
  std::tuple<Tensor, Tensor> new_gradients() const {
    return {torch::stable::new_empty(x, {x.size(0), x.size(1)}),
            torch::stable::new_empty(x, {references ? references->size(0) : 0, x.size(1)})};
  }
};

PairwiseGradients gradients_of(std::tuple<Tensor, Tensor>& gradients) {
  return {std::get<0>(gradients).mutable_data_ptr(), std::get<1>(gradients).mutable_data_ptr()};
}

PairMatrix pair_matrix_of(const Tensor& tensor) {
  return {static_cast<const float*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

const int64_t* self_of(const std::optional<Tensor>& self_index) {
  return self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
}

Tensor pairwise_distance(Tensor x, std::optional<Tensor> references, std::string metric,
                         bool fast) {
  const RowTensors tensors{x, references, metric, fast};
  tensors.check();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const PairwiseRows rows = tensors.rows();
  Tensor distance =
      torch::stable::new_empty(x, {rows.x.rows, rows.references.rows}, ScalarType::Float);
  if (distance.numel() > 0) {
    Tensor memory = new_memory(x, pairwise_distance_bytes(rows));
    launch_pairwise_distance(rows, static_cast<float*>(distance.mutable_data_ptr()),
                             memory.mutable_data_ptr(), current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return distance;
}

std::tuple<Tensor, Tensor> pairwise_distance_backward(Tensor grad, Tensor distance, Tensor x,
                                                      std::optional<Tensor> references,
                                                      std::string metric, bool fast) {
  const RowTensors tensors{x, references, metric, fast};
  tensors.check();
  const int64_t columns = tensors.others().size(0);
  check_distance_gradient(grad, distance, x, columns);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const PairwiseRows rows = tensors.rows();
  std::tuple<Tensor, Tensor> gradients = tensors.new_gradients();
  Tensor memory = new_memory(x, pairwise_distance_gradient_bytes(rows));
  launch_pairwise_distance_gradient(rows, pair_matrix_of(grad), pair_matrix_of(distance),
                                    gradients_of(gradients), memory.mutable_data_ptr(),
                                    current_stream(x));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return gradients;
}

std::tuple<Tensor, Tensor> pairwise_moments(Tensor x, std::optional<Tensor> references,
                                            std::optional<Tensor> self_index, Tensor centre,
                                            std::string metric, bool fast) {
  const RowTensors tensors{x, references, metric, fast};
  tensors.check();
  check_moments(x, references, self_index, centre);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const PairwiseRows rows = tensors.rows();
  Tensor first = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  Tensor second = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  if (x.size(0) > 0) {
    Tensor memory = new_memory(x, pairwise_moments_bytes(rows));
    launch_pairwise_moments(rows,
                            {self_of(self_index), centre.const_data_ptr<double>(),
                             static_cast<double*>(first.mutable_data_ptr()),
                             static_cast<double*>(second.mutable_data_ptr())},
                            memory.mutable_data_ptr(), current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {first, second};
}

std::tuple<Tensor, Tensor> pairwise_moments_backward(Tensor grad_first, Tensor grad_second,
                                                     Tensor x, std::optional<Tensor> references,
                                                     std::optional<Tensor> self_index,
                                                     Tensor centre, std::string metric, bool fast) {
  const RowTensors tensors{x, references, metric, fast};
  tensors.check();
  check_moments(x, references, self_index, centre);
  for (const Tensor* grad : {&grad_first, &grad_second}) {
    check_anchor_gradient(*grad, ScalarType::Double, x);
  }
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const PairwiseRows rows = tensors.rows();
  std::tuple<Tensor, Tensor> gradients = tensors.new_gradients();
  Tensor memory = new_memory(x, pairwise_moments_gradient_bytes(rows));
  launch_pairwise_moments_gradient(
      rows,
      {self_of(self_index), centre.const_data_ptr<double>(), grad_first.const_data_ptr<double>(),
       grad_second.const_data_ptr<double>(), grad_first.stride(0), grad_second.stride(0),
       gradients_of(gradients)},
      memory.mutable_data_ptr(), current_stream(x));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return gradients;
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("pairwise_distance", TORCH_BOX(&dmlfast::cuda::pairwise_distance));
  m.impl("pairwise_distance_backward", TORCH_BOX(&dmlfast::cuda::pairwise_distance_backward));
  m.impl("pairwise_moments", TORCH_BOX(&dmlfast::cuda::pairwise_moments));
  m.impl("pairwise_moments_backward", TORCH_BOX(&dmlfast::cuda::pairwise_moments_backward));
}
