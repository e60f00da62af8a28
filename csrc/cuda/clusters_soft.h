// What soft assignment to centres asks of a device.
#pragma once

#include "engine/matrix.h"
#include "metric.h"

namespace dmlfast::cuda {

// Rows shared among the references of their class, the centres: p = softmax of -distance /
// temperature.
struct SoftArguments {
  AnyRows x;
  const int64_t* labels;
  const int64_t* order;
  AnyRows references;
  const int64_t* reference_labels;
  const int64_t* reference_order;
  Metric metric;
  double temperature;
  bool is_fast;      // products may be rounded as half-precision rows are
  int shared_bytes;  // that a block may have
  int wanted_items;
};

// By row of x: the soft minimum and the mean of the distances, and the sum of exp(-excess over the
// least distance / temperature), 0 without a centre.
template <class T>
struct SoftColumns {
  T* minimum;
  T* mean;
  T* mass;
};
using SoftResults = SoftColumns<double>;

// Upstream gradients, by row of x.
struct SoftUpstream {
  const double* data;
  int64_t stride;
};

struct SoftGradientArguments {
  SoftArguments pairs;
  SoftUpstream grad_minimum;
  SoftUpstream grad_mean;
  SoftColumns<const double> results;
  AnyResult grad_x;
  AnyResult grad_references;
};

// Each launch needs a workspace of as many bytes, aligned to 16; the first, rows of x.
int64_t clusters_soft_bytes(const SoftArguments& arguments);
void launch_clusters_soft(const SoftArguments& arguments, const SoftResults& results,
                          void* workspace, cudaStream_t stream);

int64_t clusters_soft_gradient_bytes(const SoftArguments& arguments);
void launch_clusters_soft_gradient(const SoftGradientArguments& arguments, void* workspace,
                                   cudaStream_t stream);

}  // namespace dmlfast::cuda
