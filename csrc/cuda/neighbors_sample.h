// What draws of a reference of another class take, and how they are launched.
#pragma once

#include "neighbors_pairs.h"

namespace dmlfast::cuda {

// The weight of a squared distance q on the unit sphere is
// sqrt((scale / (q * (1 - q / 4)))^power / q), with q not below `least` and 1 - q / 4 not below
// 1e-8, and 0 from `end` on. The scale makes the greatest weight ordinary; it drops out.
struct SampleWeight {
  double least;
  double end;
  int64_t power;  // dimensions - 3
};

// With distances not below `cutoff`, and without those from `nonzero_loss_cutoff` on.
inline SampleWeight weight_between(double cutoff, double nonzero_loss_cutoff, int64_t dimensions) {
  return {cutoff * cutoff, nonzero_loss_cutoff * nonzero_loss_cutoff, dimensions - 3};
}

// Results are (N, 1).
struct SampleArguments : LabelledPairs {
  const double* uniform;    // (N,) in [0, 1)
  const int64_t* fallback;  // (N,) references for anchors all of whose weights are 0
  bool weighted;            // whether to draw at all
  SampleWeight weight;
};

// Bytes, at an address divisible by 16, that launch_sample needs.
int64_t sample_memory_bytes(const SampleArguments& arguments);

void launch_sample(const SampleArguments& arguments, void* memory, cudaStream_t stream);

}  // namespace dmlfast::cuda
