#include "neighbors_top.h"

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

LabelRule label_rule_of(const std::string& candidates) {
  if (candidates == "all") return LabelRule::all;
  if (candidates == "positives") return LabelRule::same_class;
  STD_TORCH_CHECK(candidates == "negatives",
                  "candidates: expected 'all', 'positives' or 'negatives', got '", candidates, "'");
  return LabelRule::other_class;
}

std::tuple<Tensor, Tensor> neighbors_top(Tensor x, Tensor labels, Tensor order, Tensor references,
                                         Tensor reference_labels, Tensor reference_order,
                                         std::optional<Tensor> self_index, int64_t k,
                                         std::string candidates, std::string metric) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  check_count("x: rows", x.size(0));
  check_count("references: rows", references.size(0));
  STD_TORCH_CHECK(k >= 1 && k <= kGreatestK, "k: expected 1 to ", kGreatestK, ", got ", k);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  Tensor distance = torch::stable::new_empty(x, {x.size(0), k}, distance_dtype(x));
  Tensor index = torch::stable::new_empty(x, {x.size(0), k}, ScalarType::Long);
  Tensor norms = torch::stable::new_empty(x, {x.size(0) + references.size(0)}, ScalarType::Double);
  TopArguments top{};
  static_cast<LabelledPairs&>(top) =
      labelled_pairs(x, labels, order, references, reference_labels, reference_order, self_index,
                     metric_of(metric), norms, distance, index);
  top.rule = label_rule_of(candidates);
  top.k = static_cast<int>(k);
  if (x.size(0) > 0) {
    Tensor memory = new_memory(x, top_memory_bytes(top));
    launch_top(top, memory.mutable_data_ptr(), shared_bytes_of(x), current_stream(x));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {distance, index};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("neighbors_top", TORCH_BOX(&dmlfast::cuda::neighbors_top));
}
