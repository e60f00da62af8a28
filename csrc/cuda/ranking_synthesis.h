// What similarities to synthesised rows ask of a device. Their kernels are compiled without torch,
// and their operators without kernels.
#pragma once

#include "engine/matrix.h"

namespace dmlfast::cuda {

// v_ij = projected_i + shifts_j is compared with targets_i. The elements of a row lie side by side.
struct SynthesisRows {
  Rows<float> projected;  // (B, p)
  Rows<float> shifts;     // (J, p)
  Rows<float> targets;    // (B, p); without data, projected_i itself is the target

  DMLFAST_HOST_DEVICE bool has_targets() const { return targets.data != nullptr; }
};

// Contiguous; that of the targets is not wanted without them.
struct SynthesisGradients {
  float* projected;
  float* shifts;
  float* targets;
};

// Writes (B, J) similarities.
void launch_synthesis(const SynthesisRows& rows, float* similarities, cudaStream_t stream);

// `upstream` is (B, J), of any strides. The workspace is aligned to 16.
int64_t synthesis_gradient_bytes(const SynthesisRows& rows);
void launch_synthesis_gradient(const SynthesisRows& rows, const Rows<float>& upstream,
                               const SynthesisGradients& gradients, void* workspace,
                               cudaStream_t stream);

}  // namespace dmlfast::cuda
