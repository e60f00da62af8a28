#include "neighbors.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "metric_name.h"
#include "operator_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
void select(SelectArguments<T> arguments, const Tensor& x, const Tensor& references) {
  arguments.x = rows_of<T>(x);
  arguments.references = rows_of<T>(references);
  Tensor memory = new_memory(x, select_memory_bytes(arguments));
  launch_select(arguments, memory.mutable_data_ptr(), shared_bytes_of(x), current_stream(x));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor> neighbors_select(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index,
                                            std::optional<Tensor> beyond, std::string metric,
                                            bool same_class, bool farthest) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  if (beyond) {
    STD_TORCH_CHECK(beyond->dim() == 2, "beyond: expected a 2-D tensor");
    check_array("beyond", *beyond, x.size(0) * beyond->size(1), ScalarType::Double, x);
  }
  check_count("references: rows", references.size(0));
  check_count("beyond: thresholds of all rows", x.size(0) * (beyond ? beyond->size(1) : 1));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const int64_t thresholds = beyond ? beyond->size(1) : 1;
  const ScalarType dtype =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor distance = torch::stable::new_empty(x, {x.size(0), thresholds}, dtype);
  Tensor index = torch::stable::new_empty(x, {x.size(0), thresholds}, ScalarType::Long);
  if (x.size(0) * thresholds == 0) {
    return {distance, index};
  }
  Tensor norms = torch::stable::new_empty(x, {x.size(0) + references.size(0)}, ScalarType::Double);
  double* norms_x = static_cast<double*>(norms.mutable_data_ptr());
  with_float_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    SelectArguments<T> arguments{};
    arguments.labels = labels.const_data_ptr<int64_t>();
    arguments.order = order.const_data_ptr<int64_t>();
    arguments.reference_labels = reference_labels.const_data_ptr<int64_t>();
    arguments.reference_order = reference_order.const_data_ptr<int64_t>();
    arguments.self_index = self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
    arguments.beyond = beyond ? beyond->const_data_ptr<double>() : nullptr;
    arguments.thresholds = thresholds;
    arguments.metric = metric_of(metric);
    arguments.same_class = same_class;
    arguments.farthest = farthest;
    arguments.norms_x = norms_x;
    arguments.norms_references = norms_x + x.size(0);
    arguments.distance = distance.mutable_data_ptr();
    arguments.index = static_cast<int64_t*>(index.mutable_data_ptr());
    select(arguments, x, references);
  });
  return {distance, index};
}

std::tuple<Tensor, Tensor> neighbors_select_backward(Tensor grad, Tensor x, Tensor references,
                                                     Tensor index, Tensor slot_order,
                                                     std::string metric) {
  check_selected(grad, x, references, index, slot_order);
  check_count("index: elements", index.numel());
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_references =
      torch::stable::new_empty(references, {references.size(0), references.size(1)});
  const int64_t slots = index.size(0) * index.size(1);
  Tensor factors = torch::stable::new_empty(x, {3 * slots}, ScalarType::Double);
  Tensor starts = torch::stable::new_empty(x, {references.size(0) + 1}, ScalarType::Long);
  double* factor = static_cast<double*>(factors.mutable_data_ptr());
  with_float_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    GradientArguments<T> arguments{};
    arguments.x = rows_of<T>(x);
    arguments.references = rows_of<T>(references);
    if (grad.scalar_type() == ScalarType::Double) {
      arguments.grad_double = rows_of<double>(grad);
    } else {
      arguments.grad_float = rows_of<float>(grad);
    }
    arguments.index = index.const_data_ptr<int64_t>();
    arguments.slot_order = slot_order.const_data_ptr<int64_t>();
    arguments.thresholds = static_cast<int>(index.size(1));
    arguments.metric = metric_of(metric);
    arguments.factors = factor;
    arguments.own_x = factor + slots;
    arguments.own_other = factor + 2 * slots;
    arguments.starts = static_cast<int64_t*>(starts.mutable_data_ptr());
    arguments.grad_x = static_cast<T*>(grad_x.mutable_data_ptr());
    arguments.grad_references = static_cast<T*>(grad_references.mutable_data_ptr());
    launch_select_gradient(arguments, current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_x, grad_references};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("neighbors_select", TORCH_BOX(&dmlfast::cuda::neighbors_select));
  m.impl("neighbors_select_backward", TORCH_BOX(&dmlfast::cuda::neighbors_select_backward));
}
