#include "neighbors_sample.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "metric_name.h"
#include "neighbors_tensors.h"
#include "operator_checks.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> neighbors_sample(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index, Tensor uniform,
                                            Tensor fallback, bool weighted, double cutoff,
                                            double nonzero_loss_cutoff, std::string metric) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  check_array("uniform", uniform, x.size(0), ScalarType::Double, x);
  check_array("fallback", fallback, x.size(0), ScalarType::Long, x);
  check_count("x: rows", x.size(0));
  check_count("references: rows", references.size(0));
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor distance = torch::stable::new_empty(x, {x.size(0), 1}, distance_dtype(x));
  Tensor index = torch::stable::new_empty(x, {x.size(0), 1}, ScalarType::Long);
  Tensor norms = torch::stable::new_empty(x, {x.size(0) + references.size(0)}, ScalarType::Double);
  SampleArguments sample{};
  static_cast<LabelledPairs&>(sample) =
      labelled_pairs(x, labels, order, references, reference_labels, reference_order, self_index,
                     metric_of(metric), norms, distance, index);
  sample.uniform = uniform.const_data_ptr<double>();
  sample.fallback = fallback.const_data_ptr<int64_t>();
  sample.weighted = weighted;
  sample.weight = weight_between(cutoff, nonzero_loss_cutoff, x.size(1));
  if (x.size(0) > 0) {
    Tensor memory = new_memory(x, sample_memory_bytes(sample));
    launch_sample(sample, memory.mutable_data_ptr(), current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {distance, index};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("neighbors_sample", TORCH_BOX(&dmlfast::cuda::neighbors_sample));
}
