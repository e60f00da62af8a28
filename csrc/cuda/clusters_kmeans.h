// What k-means asks of a device. Its kernels are compiled without torch, and its operators without
// kernels.
#pragma once

#include "engine/matrix.h"

namespace dmlfast::cuda {

// Rows and clusters are counted in 32 bits.
struct KMeans {
  AnyRows x;  // float or double
  int64_t clusters;
  void* centers;  // (clusters, columns) of the type of x: at first the initial ones
  int64_t iterations;
  int64_t* index;    // (rows,)
  double* history;   // (iterations + 1,)
  int shared_bytes;  // that a block may have
};

// Bytes of workspace, aligned to 16, that the launch needs.
int64_t kmeans_bytes(const KMeans& arguments);
void launch_kmeans(const KMeans& arguments, void* workspace, cudaStream_t stream);

}  // namespace dmlfast::cuda
