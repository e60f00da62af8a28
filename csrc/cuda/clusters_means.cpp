#include "clusters_means.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "clusters_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> clusters_means(Tensor x, Tensor index, int64_t clusters) {
  check_cluster_means(x, index, clusters);
  check_count("x: rows", x.size(0));
  check_count("clusters", clusters);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const ScalarType dtype =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor means = torch::stable::new_empty(x, {clusters, x.size(1)}, dtype);
  Tensor count = torch::stable::new_empty(x, {clusters}, ScalarType::Long);
  ClusterMeans arguments{};
  arguments.x = any_rows_of(x);
  arguments.index = index.const_data_ptr<int64_t>();
  arguments.clusters = clusters;
  arguments.means = {means.mutable_data_ptr(), element_type_of(dtype), x.size(1)};
  arguments.count = static_cast<int64_t*>(count.mutable_data_ptr());
  Tensor memory = new_memory(x, cluster_means_bytes(arguments));
  launch_cluster_means(arguments, memory.mutable_data_ptr(), current_stream(x));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {means, count};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("clusters_means", TORCH_BOX(&dmlfast::cuda::clusters_means));
}
