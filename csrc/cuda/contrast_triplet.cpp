#include "contrast_triplet.h"

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

// The arguments that both operators take.
struct TripletTensors {
  const Tensor& x;
  const Tensor& labels;
  const Tensor& order;
  const Tensor& references;
  const Tensor& reference_labels;
  const Tensor& reference_order;
  const std::optional<Tensor>& self_index;
  const std::string& metric;
  const std::string& positives;
  const std::string& negatives;
  double margin;
  bool fast;

  void check() const {
    check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
    check_served("x", x);
    STD_TORCH_CHECK(negatives == "all", "negatives: expected 'all', got '", negatives, "'");
    STD_TORCH_CHECK(positives == "all" || positives == "nearest" || positives == "farthest",
                    "positives: expected 'all', 'nearest' or 'farthest', got '", positives, "'");
    check_count("x: rows", x.size(0));
    check_count("references: rows", references.size(0));
  }

  TripletArguments arguments() const {
    TripletArguments a{};
    a.x = any_rows_of(x);
    a.labels = labels.const_data_ptr<int64_t>();
    a.order = order.const_data_ptr<int64_t>();
    a.references = any_rows_of(references);
    a.reference_labels = reference_labels.const_data_ptr<int64_t>();
    a.reference_order = reference_order.const_data_ptr<int64_t>();
    a.self_index = self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
    a.is_fast = fast;
    a.metric = metric_of(metric);
    a.positives = positives == "all"       ? TripletPositives::all
                  : positives == "nearest" ? TripletPositives::nearest
                                           : TripletPositives::farthest;
    a.margin = margin;
    return a;
  }
};

std::tuple<Tensor, Tensor> contrast_triplet(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index, std::string metric,
                                            std::string positives, std::string negatives,
                                            double margin, bool fast) {
  const TripletTensors tensors{
      x,          labels, order,     references, reference_labels, reference_order,
      self_index, metric, positives, negatives,  margin,           fast};
  tensors.check();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor loss = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float);
  Tensor active = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  if (x.size(0) > 0) {
    const TripletArguments arguments = tensors.arguments();
    Tensor memory = new_memory(x, triplet_workspace_bytes(arguments));
    launch_triplet(arguments,
                   {static_cast<float*>(loss.mutable_data_ptr()),
                    static_cast<int64_t*>(active.mutable_data_ptr())},
                   memory.mutable_data_ptr(), shared_bytes_of(x), current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {loss, active};
}

std::tuple<Tensor, Tensor> contrast_triplet_backward(
    Tensor grad, Tensor x, Tensor labels, Tensor order, Tensor references, Tensor reference_labels,
    Tensor reference_order, std::optional<Tensor> self_index, std::string metric,
    std::string positives, std::string negatives, double margin, bool fast) {
  const TripletTensors tensors{
      x,          labels, order,     references, reference_labels, reference_order,
      self_index, metric, positives, negatives,  margin,           fast};
  tensors.check();
  check_anchor_gradient(grad, ScalarType::Float, x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_references =
      torch::stable::new_empty(references, {references.size(0), references.size(1)});
  if (x.size(0) == 0) {
    torch::stable::zero_(grad_references);
    return {grad_x, grad_references};
  }
  const TripletArguments arguments = tensors.arguments();
  Tensor memory = new_memory(x, triplet_gradient_workspace_bytes(arguments));
  const ElementType type = element_type_of(x.scalar_type());
  launch_triplet_gradient(arguments,
                          {grad.const_data_ptr<float>(),
                           grad.stride(0),
                           {grad_x.mutable_data_ptr(), type, x.size(1)},
                           {grad_references.mutable_data_ptr(), type, references.size(1)}},
                          memory.mutable_data_ptr(), shared_bytes_of(x), current_stream(x));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_x, grad_references};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("contrast_triplet", TORCH_BOX(&dmlfast::cuda::contrast_triplet));
  m.impl("contrast_triplet_backward", TORCH_BOX(&dmlfast::cuda::contrast_triplet_backward));
}
