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

// The arguments of a selection, checked.
struct SelectTensors {
  Tensor x;
  Tensor labels;
  Tensor order;
  Tensor references;
  Tensor reference_labels;
  Tensor reference_order;
  std::optional<Tensor> self_index;
  std::optional<Tensor> beyond;
  std::string metric;
  bool same_class;
  bool farthest;

  int64_t thresholds() const { return beyond ? beyond->size(1) : 1; }

  void check() const {
    check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
    if (beyond) {
      STD_TORCH_CHECK(beyond->dim() == 2, "beyond: expected a 2-D tensor");
      check_array("beyond", *beyond, x.size(0) * beyond->size(1), ScalarType::Double, x);
    }
    check_count("references: rows", references.size(0));
    check_count("beyond: thresholds of all rows", x.size(0) * thresholds());
  }

  template <class T>
  SelectArguments<T> arguments() const {
    SelectArguments<T> a{};
    a.x = rows_of<T>(x);
    a.references = rows_of<T>(references);
    a.labels = labels.const_data_ptr<int64_t>();
    a.order = order.const_data_ptr<int64_t>();
    a.reference_labels = reference_labels.const_data_ptr<int64_t>();
    a.reference_order = reference_order.const_data_ptr<int64_t>();
    a.self_index = self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
    a.beyond = beyond ? beyond->const_data_ptr<double>() : nullptr;
    a.thresholds = thresholds();
    a.metric = metric_of(metric);
    a.same_class = same_class;
    a.farthest = farthest;
    return a;
  }
};

// A selection under way: its results, and the memory that it used.
struct Selected {
  Tensor distance;
  Tensor index;
  Tensor counts;
};

Selected select(const SelectTensors& tensors, bool counts_undecided) {
  tensors.check();
  const Tensor& x = tensors.x;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const ScalarType dtype =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t slots = x.size(0) * tensors.thresholds();
  Selected selected{
      torch::stable::new_empty(x, {x.size(0), tensors.thresholds()}, dtype),
      torch::stable::new_empty(x, {x.size(0), tensors.thresholds()}, ScalarType::Long),
      torch::stable::new_empty(x, {counts_undecided ? 2 : 0}, ScalarType::Int)};
  if (counts_undecided) {
    torch::stable::zero_(selected.counts);
  }
  if (slots == 0) {
    return selected;
  }
  Tensor norms =
      torch::stable::new_empty(x, {x.size(0) + tensors.references.size(0)}, ScalarType::Double);
  with_float_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    SelectArguments<T> arguments = tensors.arguments<T>();
    arguments.norms_x = static_cast<double*>(norms.mutable_data_ptr());
    arguments.norms_references = arguments.norms_x + x.size(0);
    arguments.distance = selected.distance.mutable_data_ptr();
    arguments.index = static_cast<int64_t*>(selected.index.mutable_data_ptr());
    Tensor memory = new_memory(x, select_memory_bytes(arguments));
    const cudaStream_t stream = current_stream(x);
    launch_select(arguments, memory.mutable_data_ptr(), shared_bytes_of(x), stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const int32_t* counts = search_counts(arguments, memory.mutable_data_ptr());
    if (counts_undecided && counts != nullptr) {
      STD_CUDA_CHECK(cudaMemcpyAsync(selected.counts.mutable_data_ptr(), counts,
                                     2 * sizeof(int32_t), cudaMemcpyDeviceToDevice, stream));
    }
  });
  return selected;
}

std::tuple<Tensor, Tensor> neighbors_select(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index,
                                            std::optional<Tensor> beyond, std::string metric,
                                            bool same_class, bool farthest) {
  const Selected selected = select({x, labels, order, references, reference_labels, reference_order,
                                    self_index, beyond, metric, same_class, farthest},
                                   false);
  return {selected.distance, selected.index};
}

Tensor neighbors_search_counts(Tensor x, Tensor labels, Tensor order, Tensor references,
                               Tensor reference_labels, Tensor reference_order,
                               std::optional<Tensor> self_index, std::optional<Tensor> beyond,
                               std::string metric) {
  return select({x, labels, order, references, reference_labels, reference_order, self_index,
                 beyond, metric, false, false},
                true)
      .counts;
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
  m.impl("neighbors_search_counts", TORCH_BOX(&dmlfast::cuda::neighbors_search_counts));
  m.impl("neighbors_select_backward", TORCH_BOX(&dmlfast::cuda::neighbors_select_backward));
}
