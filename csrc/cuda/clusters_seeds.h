// What the draws of k-means++ ask of a device. Their kernels are compiled without torch, and their
// operator without kernels.
#pragma once

#include "engine/matrix.h"

namespace dmlfast::cuda {

// Rows are counted in 32 bits.
struct Seeds {
  AnyRows x;
  const double* uniform;  // (draws,) from [0, 1)
  int64_t draws;
  int64_t* index;  // (draws,) rows; -1 where none is finite
};

// Bytes of workspace, aligned to 16, that the launch needs.
int64_t seeds_bytes(const Seeds& arguments);
void launch_seeds(const Seeds& arguments, void* workspace, cudaStream_t stream);

}  // namespace dmlfast::cuda
