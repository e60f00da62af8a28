#include "ranking_synthesis.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "ranking_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::stable::Tensor;

// The tensors of both operators, checked, with the elements of each row side by side.
struct SynthesisTensors {
  Tensor projected;
  Tensor shifts;
  std::optional<Tensor> targets;

  SynthesisTensors(const Tensor& given_projected, const Tensor& given_shifts,
                   const std::optional<Tensor>& given_targets)
      : projected(given_projected), shifts(given_shifts), targets(given_targets) {
    check_synthesis(projected, shifts, targets);
  }

  // Under a device guard, as it may copy.
  SynthesisRows rows() {
    SynthesisRows rows{};
    rows.projected = rows_of<float>(projected = with_whole_rows(projected));
    rows.shifts = rows_of<float>(shifts = with_whole_rows(shifts));
    if (targets) {
      rows.targets = rows_of<float>(*(targets = with_whole_rows(*targets)));
    }
    return rows;
  }

 private:
  static Tensor with_whole_rows(const Tensor& tensor) {
    return tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor);
  }
};

Tensor synthesis_similarity(Tensor projected, Tensor shifts, std::optional<Tensor> targets) {
  SynthesisTensors tensors(projected, shifts, targets);
  const torch::stable::accelerator::DeviceGuard guard(projected.get_device());
  const SynthesisRows rows = tensors.rows();
  Tensor result = torch::stable::new_empty(projected, {projected.size(0), shifts.size(0)});
  launch_synthesis(rows, static_cast<float*>(result.mutable_data_ptr()), current_stream(projected));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

std::tuple<Tensor, Tensor, Tensor> synthesis_similarity_backward(Tensor grad, Tensor projected,
                                                                 Tensor shifts,
                                                                 std::optional<Tensor> targets) {
  SynthesisTensors tensors(projected, shifts, targets);
  check_synthesis_gradient(grad, projected, shifts);
  const torch::stable::accelerator::DeviceGuard guard(projected.get_device());
  const SynthesisRows rows = tensors.rows();
  const auto new_gradient = [&](int64_t count) {
    return torch::stable::new_empty(projected, {count, projected.size(1)});
  };
  std::tuple<Tensor, Tensor, Tensor> gradients{new_gradient(projected.size(0)),
                                               new_gradient(shifts.size(0)),
                                               new_gradient(targets ? projected.size(0) : 0)};
  Tensor memory = new_memory(projected, synthesis_gradient_bytes(rows));
  launch_synthesis_gradient(rows, rows_of<float>(grad),
                            {static_cast<float*>(std::get<0>(gradients).mutable_data_ptr()),
                             static_cast<float*>(std::get<1>(gradients).mutable_data_ptr()),
                             static_cast<float*>(std::get<2>(gradients).mutable_data_ptr())},
                            memory.mutable_data_ptr(), current_stream(projected));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return gradients;
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("synthesis_similarity", TORCH_BOX(&dmlfast::cuda::synthesis_similarity));
  m.impl("synthesis_similarity_backward", TORCH_BOX(&dmlfast::cuda::synthesis_similarity_backward));
}
