#include "contrast_sums.h"

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

SumForm form_of(const std::string& name) {
  if (name == "none") return SumForm::none;
  if (name == "logsumexp") return SumForm::logsumexp;
  if (name == "hinge") return SumForm::hinge;
  if (name == "softplus") return SumForm::softplus;
  STD_TORCH_CHECK(name == "sum",
                  "form: expected 'none', 'logsumexp', 'hinge', 'sum' or 'softplus', got '", name,
                  "'");
  return SumForm::sum;
}

struct SideTensors {
  std::optional<Tensor> bound;
  std::string form;
  double scale;
};

// The arguments that both operators take, checked.
struct SumTensors {
  Tensor x;
  Tensor labels;
  Tensor order;
  std::optional<Tensor> references;
  Tensor reference_labels;
  Tensor reference_order;
  std::optional<Tensor> self_index;
  SideTensors side[2];
  std::string metric;
  bool fast;

  const Tensor& others() const { return references ? *references : x; }

  void check() const {
    check_labelled(x, labels, order, others(), reference_labels, reference_order, self_index);
    STD_TORCH_CHECK(references || !self_index, "self_index: expected none without references");
    check_served("x", x);
    check_count("x: rows", x.size(0));
    check_count("references: rows", others().size(0));
    for (const SideTensors& each : side) {
      const SumForm form = form_of(each.form);
      STD_TORCH_CHECK(each.bound || (form != SumForm::hinge && form != SumForm::softplus),
                      "bound: expected one for the form '", each.form, "'");
      if (each.bound) {
        check_array("bound", *each.bound, x.size(0), ScalarType::Float, x);
      }
    }
  }

  SumArguments arguments() const {
    SumArguments a{};
    a.x = any_rows_of(x);
    a.labels = labels.const_data_ptr<int64_t>();
    a.order = order.const_data_ptr<int64_t>();
    a.references = any_rows_of(others());
    a.reference_labels = reference_labels.const_data_ptr<int64_t>();
    a.reference_order = reference_order.const_data_ptr<int64_t>();
    a.self_index = self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
    a.within_batch = !references;
    a.is_fast = fast;
    a.metric = metric_of(metric);
    for (int i = 0; i < 2; ++i) {
      a.form[i] = form_of(side[i].form);
      a.scale[i] = side[i].scale;
      a.bound[i] = side[i].bound ? side[i].bound->const_data_ptr<float>() : nullptr;
    }
    return a;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_sums(
    Tensor x, Tensor labels, Tensor order, std::optional<Tensor> references,
    Tensor reference_labels, Tensor reference_order, std::optional<Tensor> self_index,
    std::optional<Tensor> positive_bound, std::optional<Tensor> negative_bound, std::string metric,
    std::string positive_form, double positive_scale, std::string negative_form,
    double negative_scale, bool fast) {
  const SumTensors tensors{x,
                           labels,
                           order,
                           references,
                           reference_labels,
                           reference_order,
                           self_index,
                           {{positive_bound, positive_form, positive_scale},
                            {negative_bound, negative_form, negative_scale}},
                           metric,
                           fast};
  tensors.check();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const auto new_column = [&](ScalarType dtype) {
    return torch::stable::new_empty(x, {x.size(0)}, dtype);
  };
  Tensor sum[2] = {new_column(ScalarType::Float), new_column(ScalarType::Float)};
  Tensor count[2] = {new_column(ScalarType::Long), new_column(ScalarType::Long)};
  if (x.size(0) > 0) {
    const SumArguments arguments = tensors.arguments();
    SumResults results{};
    for (int i = 0; i < 2; ++i) {
      results.sum[i] = static_cast<float*>(sum[i].mutable_data_ptr());
      results.count[i] = static_cast<int64_t*>(count[i].mutable_data_ptr());
    }
    Tensor memory = new_memory(x, sums_workspace_bytes(arguments));
    launch_sums(arguments, results, memory.mutable_data_ptr(), shared_bytes_of(x),
                current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {sum[0], sum[1], count[0], count[1]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_sums_backward(
    Tensor grad_positive, Tensor grad_negative, Tensor positive, Tensor negative, Tensor x,
    Tensor labels, Tensor order, std::optional<Tensor> references, Tensor reference_labels,
    Tensor reference_order, std::optional<Tensor> self_index, std::optional<Tensor> positive_bound,
    std::optional<Tensor> negative_bound, std::string metric, std::string positive_form,
    double positive_scale, std::string negative_form, double negative_scale, bool fast) {
  const SumTensors tensors{x,
                           labels,
                           order,
                           references,
                           reference_labels,
                           reference_order,
                           self_index,
                           {{positive_bound, positive_form, positive_scale},
                            {negative_bound, negative_form, negative_scale}},
                           metric,
                           fast};
  tensors.check();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_references =
      torch::stable::new_empty(x, {references ? references->size(0) : 0, x.size(1)});
  Tensor grad_bound[2] = {torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float),
                          torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float)};
  SumGradientArguments arguments{};
  arguments.pairs = tensors.arguments();
  const Tensor* grads[2] = {&grad_positive, &grad_negative};
  const Tensor* results[2] = {&positive, &negative};
  for (int i = 0; i < 2; ++i) {
    check_anchor_gradient(*grads[i], ScalarType::Float, x);
    check_array("result", *results[i], x.size(0), ScalarType::Float, x);
    arguments.grad[i] = {grads[i]->const_data_ptr<float>(), grads[i]->stride(0)};
    arguments.result[i] = results[i]->const_data_ptr<float>();
    arguments.grad_bound[i] = static_cast<float*>(grad_bound[i].mutable_data_ptr());
  }
  arguments.grad_x = any_result_of(grad_x);
  arguments.grad_references = any_result_of(grad_references);
  if (x.size(0) > 0 || grad_references.size(0) > 0) {
    Tensor memory = new_memory(x, sums_gradient_workspace_bytes(arguments.pairs));
    launch_sums_gradient(arguments, memory.mutable_data_ptr(), shared_bytes_of(x),
                         current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {grad_x, grad_references, grad_bound[0], grad_bound[1]};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("contrast_sums", TORCH_BOX(&dmlfast::cuda::contrast_sums));
  m.impl("contrast_sums_backward", TORCH_BOX(&dmlfast::cuda::contrast_sums_backward));
}
