// What the ranking loss asks of a device. Its kernels are compiled without torch, and its
// operators without kernels.
#pragma once

#include "engine/matrix.h"
#include "ranking_form.h"

namespace dmlfast::cuda {

// Writes the loss of each row of the similarities.
void launch_ranking_loss(const AnyRows& similarities, const RankingForm& form, float* losses,
                         cudaStream_t stream);

// A row of `upstream` is one value, of a row of the similarities. The workspace is aligned to 16.
int64_t ranking_gradient_bytes(const AnyRows& similarities, const RankingForm& form);
void launch_ranking_gradient(const AnyRows& similarities, const RankingForm& form,
                             const AnyRows& upstream, const AnyResult& gradient, void* workspace,
                             cudaStream_t stream);

}  // namespace dmlfast::cuda
