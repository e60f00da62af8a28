// The triplets of the family `contrast` on CUDA: what the operators hand to the kernels.
#pragma once

#include "engine/matrix.h"
#include "metric.h"

namespace dmlfast::cuda {

enum class TripletPositives { all, nearest, farthest };

// The arguments that both operators take; every reference of another class is a negative.
struct TripletArguments {
  AnyRows x;
  const int64_t* labels;
  const int64_t* order;
  AnyRows references;
  const int64_t* reference_labels;
  const int64_t* reference_order;
  const int64_t* self_index;  // by anchor, or null
  bool is_fast;               // products may be rounded as half-precision rows are
  Metric metric;
  TripletPositives positives;
  double margin;
  int most_bounds;  // positives of an anchor that one pass serves; 0 for the usual number
  int wanted_items;
};

struct TripletResults {
  float* loss;      // by anchor
  int64_t* active;  // by anchor
};

struct TripletGradients {
  const float* upstream;  // by anchor
  int64_t upstream_stride;
  AnyResult x;
  AnyResult references;
};

// Bytes that the launches need at an address aligned to 16 bytes.
int64_t triplet_workspace_bytes(const TripletArguments& arguments);
int64_t triplet_gradient_workspace_bytes(const TripletArguments& arguments);

// `shared_bytes` is what a block of the device may have. There are anchors.
void launch_triplet(const TripletArguments& arguments, const TripletResults& results,
                    void* workspace, int shared_bytes, cudaStream_t stream);
void launch_triplet_gradient(const TripletArguments& arguments, const TripletGradients& gradients,
                             void* workspace, int shared_bytes, cudaStream_t stream);

}  // namespace dmlfast::cuda
