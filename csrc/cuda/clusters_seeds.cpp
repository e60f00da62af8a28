#include "clusters_seeds.h"

#include <torch/csrc/stable/library.h>

#include "clusters_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor clusters_seeds(Tensor x, Tensor uniform) {
  check_seeds(x, uniform);
  check_count("x: rows", x.size(0));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor index = torch::stable::new_empty(x, {uniform.numel()}, ScalarType::Long);
  const Seeds arguments{any_rows_of(x), uniform.const_data_ptr<double>(), uniform.numel(),
                        static_cast<int64_t*>(index.mutable_data_ptr())};
  Tensor memory = new_memory(x, seeds_bytes(arguments));
  launch_seeds(arguments, memory.mutable_data_ptr(), current_stream(x));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return index;
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("clusters_seeds", TORCH_BOX(&dmlfast::cuda::clusters_seeds));
}
