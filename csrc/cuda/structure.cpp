#include "structure.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "structure_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The rows of both operators, checked.
struct RowTensors {
  Tensor e;
  Tensor w;
  std::optional<Tensor> references;

  const Tensor& others() const { return references ? *references : e; }

  void check() const {
    check_structure(e, w, references);
    check_count("e: rows", e.size(0));
    check_count("references: rows", others().size(0));
  }

  StructureRows rows(bool squared) const {
    StructureRows rows{};
    rows.e = any_rows_of(e);
    rows.w = any_rows_of(w);
    rows.references = any_rows_of(others());
    rows.within_batch = !references;
    rows.squared = squared;
    rows.shared_bytes = shared_bytes_of(e);
    return rows;
  }
};

PairMatrix pair_matrix_of(const Tensor& tensor) {
  return {static_cast<const float*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

Tensor structure_distance(Tensor e, Tensor w, std::optional<Tensor> references, bool squared) {
  const RowTensors tensors{e, w, references};
  tensors.check();
  const torch::stable::accelerator::DeviceGuard guard(e.get_device());
  const StructureRows rows = tensors.rows(squared);
  Tensor distance =
      torch::stable::new_empty(e, {rows.e.rows, rows.references.rows}, ScalarType::Float);
  if (distance.numel() > 0) {
    Tensor memory = new_memory(e, structure_distance_bytes(rows));
    launch_structure_distance(rows, static_cast<float*>(distance.mutable_data_ptr()),
                              memory.mutable_data_ptr(), current_stream(e));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return distance;
}

std::tuple<Tensor, Tensor, Tensor> structure_distance_backward(Tensor grad, Tensor distance,
                                                               Tensor e, Tensor w,
                                                               std::optional<Tensor> references,
                                                               bool squared) {
  const RowTensors tensors{e, w, references};
  tensors.check();
  const int64_t columns = tensors.others().size(0);
  check_distance_gradient(grad, distance, e, columns);
  const torch::stable::accelerator::DeviceGuard guard(e.get_device());
  const StructureRows rows = tensors.rows(squared);
  Tensor grad_e = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  Tensor grad_w = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  Tensor grad_references = torch::stable::new_empty(e, {references ? columns : 0, e.size(1)});
  Tensor memory = new_memory(e, structure_distance_gradient_bytes(rows));
  launch_structure_distance_gradient(
      rows, pair_matrix_of(grad), pair_matrix_of(distance),
      {grad_e.mutable_data_ptr(), grad_w.mutable_data_ptr(), grad_references.mutable_data_ptr()},
      memory.mutable_data_ptr(), current_stream(e));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_e, grad_w, grad_references};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("structure_distance", TORCH_BOX(&dmlfast::cuda::structure_distance));
  m.impl("structure_distance_backward", TORCH_BOX(&dmlfast::cuda::structure_distance_backward));
}
