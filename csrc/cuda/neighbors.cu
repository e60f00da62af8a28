#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "metric_name.h"
#include "neighbors_gradient.cuh"
#include "neighbors_select.cuh"
#include "operator_checks.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class F>
void with_float_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.size(0), tensor.size(1),
          tensor.stride(0), tensor.stride(1)};
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Kernels count rows and queries in 32 bits.
void check_count(const char* name, int64_t count) {
  STD_TORCH_CHECK(count <= INT32_MAX, name, ": expected at most ", INT32_MAX, ", got ", count);
}

template <class T>
void select(SelectArguments<T> arguments, const Tensor& x, const Tensor& references) {
  using Distance = std::conditional_t<std::is_same_v<T, double>, double, float>;
  arguments.x = rows_of<T>(x);
  arguments.references = rows_of<T>(references);
  const int64_t bytes = select_workspace_bytes(arguments.slots(), arguments.same_class);
  // Held until the launch: memory freed afterwards is reused in stream order only.
  Tensor workspace = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
  launch_select<T, Distance>(arguments, workspace.mutable_data_ptr(), current_stream(x));
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
    launch_gradient(arguments, current_stream(x));
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
