#include "clusters_soft.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "clusters_soft_checks.h"
#include "metric_name.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The arguments of both operators, checked.
struct SoftTensors {
  Tensor x;
  Tensor labels;
  Tensor order;
  Tensor centers;
  Tensor center_labels;
  Tensor center_order;
  std::string metric;
  double temperature;
  bool fast;

  void check() const {
    check_soft(x, labels, order, centers, center_labels, center_order, temperature);
    check_count("x: rows", x.size(0));
    check_count("centers: rows", centers.size(0));
  }

  SoftArguments arguments() const {
    SoftArguments a{};
    a.x = any_rows_of(x);
    a.labels = labels.const_data_ptr<int64_t>();
    a.order = order.const_data_ptr<int64_t>();
    a.references = any_rows_of(centers);
    a.reference_labels = center_labels.const_data_ptr<int64_t>();
    a.reference_order = center_order.const_data_ptr<int64_t>();
    a.metric = metric_of(metric);
    a.temperature = temperature;
    a.is_fast = fast;
    a.shared_bytes = shared_bytes_of(x);
    return a;
  }
};

std::tuple<Tensor, Tensor, Tensor> clusters_soft(Tensor x, Tensor labels, Tensor order,
                                                 Tensor centers, Tensor center_labels,
                                                 Tensor center_order, std::string metric,
                                                 double temperature, bool fast) {
  const SoftTensors tensors{x,      labels,      order, centers, center_labels, center_order,
                            metric, temperature, fast};
  tensors.check();
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor minimum = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  Tensor mean = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  Tensor mass = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Double);
  if (x.size(0) > 0) {
    const SoftArguments arguments = tensors.arguments();
    Tensor memory = new_memory(x, clusters_soft_bytes(arguments));
    launch_clusters_soft(arguments,
                         {static_cast<double*>(minimum.mutable_data_ptr()),
                          static_cast<double*>(mean.mutable_data_ptr()),
                          static_cast<double*>(mass.mutable_data_ptr())},
                         memory.mutable_data_ptr(), current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {minimum, mean, mass};
}

SoftUpstream upstream_of(const Tensor& grad) {
  return {grad.const_data_ptr<double>(), grad.stride(0)};
}

std::tuple<Tensor, Tensor> clusters_soft_backward(Tensor grad_minimum, Tensor grad_mean,
                                                  Tensor minimum, Tensor mean, Tensor mass,
                                                  Tensor x, Tensor labels, Tensor order,
                                                  Tensor centers, Tensor center_labels,
                                                  Tensor center_order, std::string metric,
                                                  double temperature, bool fast) {
  const SoftTensors tensors{x,      labels,      order, centers, center_labels, center_order,
                            metric, temperature, fast};
  tensors.check();
  check_soft_gradient(grad_minimum, grad_mean, minimum, mean, mass, x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_centers = torch::stable::new_empty(centers, {centers.size(0), x.size(1)});
  const SoftGradientArguments arguments{
      tensors.arguments(),
      upstream_of(grad_minimum),
      upstream_of(grad_mean),
      {minimum.const_data_ptr<double>(), mean.const_data_ptr<double>(),
       mass.const_data_ptr<double>()},
      any_result_of(grad_x),
      any_result_of(grad_centers)};
  if (x.size(0) > 0 || centers.size(0) > 0) {
    Tensor memory = new_memory(x, clusters_soft_gradient_bytes(arguments.pairs));
    launch_clusters_soft_gradient(arguments, memory.mutable_data_ptr(), current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {grad_x, grad_centers};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("clusters_soft", TORCH_BOX(&dmlfast::cuda::clusters_soft));
  m.impl("clusters_soft_backward", TORCH_BOX(&dmlfast::cuda::clusters_soft_backward));
}
