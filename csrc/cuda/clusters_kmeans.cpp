#include "clusters_kmeans.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "clusters_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> clusters_kmeans(Tensor x, Tensor initial, int64_t iterations) {
  check_kmeans(x, initial, iterations);
  check_count("x: rows", x.size(0));
  check_count("initial: rows", initial.size(0));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor centers = torch::stable::new_empty(x, {initial.size(0), x.size(1)});
  torch::stable::copy_(centers, initial);
  Tensor index = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor history = torch::stable::new_empty(x, {iterations + 1}, ScalarType::Double);
  KMeans arguments{};
  arguments.x = any_rows_of(x);
  arguments.clusters = initial.size(0);
  arguments.centers = centers.mutable_data_ptr();
  arguments.iterations = iterations;
  arguments.index = static_cast<int64_t*>(index.mutable_data_ptr());
  arguments.history = static_cast<double*>(history.mutable_data_ptr());
  arguments.shared_bytes = shared_bytes_of(x);
  Tensor memory = new_memory(x, kmeans_bytes(arguments));
  launch_kmeans(arguments, memory.mutable_data_ptr(), current_stream(x));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {centers, index, history};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("clusters_kmeans", TORCH_BOX(&dmlfast::cuda::clusters_kmeans));
}
