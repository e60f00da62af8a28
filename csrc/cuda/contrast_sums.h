// The sums of the family `contrast` on CUDA: what the operators hand to the kernels.
#pragma once

#include "engine/matrix.h"
#include "metric.h"

namespace dmlfast::cuda {

// What is summed over the partners of an anchor.
enum class SumForm { none, logsumexp, hinge, sum, softplus };

// The arguments that both operators take. Within a batch the references are the anchors.
struct SumArguments {
  AnyRows x;
  const int64_t* labels;
  const int64_t* order;
  AnyRows references;
  const int64_t* reference_labels;
  const int64_t* reference_order;
  const int64_t* self_index;  // by anchor, or null
  bool within_batch;
  bool is_fast;  // products may be rounded as half-precision rows are
  Metric metric;
  // By side: positives, negatives.
  SumForm form[2];
  double scale[2];
  const float* bound[2];  // by anchor, or null
  int wanted_items;
};

struct SumResults {
  float* sum[2];  // by side, by anchor
  int64_t* count[2];
};

// By anchor.
struct SumUpstream {
  const float* data;
  int64_t stride;
};

struct SumGradientArguments {
  SumArguments pairs;
  // By side.
  SumUpstream grad[2];
  const float* result[2];
  float* grad_bound[2];
  AnyResult grad_x;
  AnyResult grad_references;  // not written within a batch
};

// Bytes that launch_sums needs at an address aligned to 16 bytes.
int64_t sums_workspace_bytes(const SumArguments& arguments);

// `shared_bytes` is what a block of the device may have. There are anchors.
void launch_sums(const SumArguments& arguments, const SumResults& results, void* workspace,
                 int shared_bytes, cudaStream_t stream);

int64_t sums_gradient_workspace_bytes(const SumArguments& arguments);

void launch_sums_gradient(const SumGradientArguments& arguments, void* workspace, int shared_bytes,
                          cudaStream_t stream);

}  // namespace dmlfast::cuda
