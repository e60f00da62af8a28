#include "ranking.h"

#include <torch/csrc/stable/library.h>

#include <string>

#include "ranking_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// As a matrix of one column.
AnyRows any_column_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), element_type_of(tensor.scalar_type()),
          tensor.size(0),          1,
          tensor.stride(0),        1};
}

Tensor ranking_loss(Tensor similarities, double margin, double scale, std::string pairs) {
  check_similarities(similarities);
  const RankingForm form = ranking_form(margin, scale, pairs);
  const torch::stable::accelerator::DeviceGuard guard(similarities.get_device());
  Tensor loss = torch::stable::new_empty(similarities, {similarities.size(0)}, ScalarType::Float);
  launch_ranking_loss(any_rows_of(similarities), form, static_cast<float*>(loss.mutable_data_ptr()),
                      current_stream(similarities));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return loss;
}

Tensor ranking_loss_backward(Tensor grad, Tensor similarities, double margin, double scale,
                             std::string pairs) {
  check_similarities(similarities);
  check_row_gradient(grad, similarities);
  const RankingForm form = ranking_form(margin, scale, pairs);
  const torch::stable::accelerator::DeviceGuard guard(similarities.get_device());
  const AnyRows rows = any_rows_of(similarities);
  Tensor result = torch::stable::new_empty(similarities, {rows.rows, rows.columns});
  Tensor memory = new_memory(similarities, ranking_gradient_bytes(rows, form));
  launch_ranking_gradient(rows, form, any_column_of(grad),
                          {result.mutable_data_ptr(), rows.type, rows.columns},
                          memory.mutable_data_ptr(), current_stream(similarities));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("ranking_loss", TORCH_BOX(&dmlfast::cuda::ranking_loss));
  m.impl("ranking_loss_backward", TORCH_BOX(&dmlfast::cuda::ranking_loss_backward));
}
