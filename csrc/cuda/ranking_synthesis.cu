#include "ranking_synthesis.h"
#include "ranking_synthesis_gradient.cuh"

namespace dmlfast::cuda {

namespace {

struct SimilarityTaker {
  float* similarities;
  int64_t steps;

  __device__ bool take(int64_t i, int64_t j, const SynthesisMeasure& measure) {
    similarities[i * steps + j] = static_cast<float>(measure.similarity);
    return true;
  }
  __device__ void finish(int64_t, bool, bool) {}
};

}  // namespace

void launch_synthesis(const SynthesisRows& rows, float* similarities, cudaStream_t stream) {
  launch_synthesis_measure(rows, SimilarityTaker{similarities, rows.shifts.rows}, stream);
}

int64_t synthesis_gradient_bytes(const SynthesisRows& rows) {
  Workspace workspace;
  SynthesisGradientMemory::take(workspace, rows);
  return workspace.bytes();
}

void launch_synthesis_gradient(const SynthesisRows& rows, const Rows<float>& upstream,
                               const SynthesisGradients& gradients, void* workspace,
                               cudaStream_t stream) {
  Workspace memory_of(workspace);
  const SynthesisGradientMemory memory = SynthesisGradientMemory::take(memory_of, rows);
  launch_synthesis_measure(rows, WeightTaker{upstream, memory}, stream);
  const int64_t columns = rows.projected.columns;
  const int64_t blocks = (columns + kGradientThreads - 1) / kGradientThreads;
  if (memory.chunks * blocks > 0) {
    DMLFAST_LAUNCH(synthesis_gradient_kernel, dim3{grid_for(memory.chunks * blocks)},
                   kGradientThreads, stream, SynthesisGradientTask{rows, memory, gradients});
  }
  const int64_t elements = rows.shifts.rows * columns;
  if (elements > 0) {
    DMLFAST_LAUNCH(join_shift_gradients_kernel, dim3{grid_for((elements + 31) / 32)},
                   kJoinWarps * 32, stream, memory, elements, gradients.shifts);
  }
}

}  // namespace dmlfast::cuda
