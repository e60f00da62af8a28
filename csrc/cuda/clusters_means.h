// What the means of clusters ask of a device. Their kernels are compiled without torch, and their
// operator without kernels.
#pragma once

#include "engine/matrix.h"

namespace dmlfast::cuda {

// Rows and clusters are counted in 32 bits.
struct ClusterMeans {
  AnyRows x;
  const int64_t* index;  // (rows,) clusters; other numbers stand for none
  int64_t clusters;
  AnyResult means;        // (clusters, columns) float or double
  bool keeps_empty;       // whether what stands for a cluster without rows stays, or becomes 0
  int64_t* count;         // (clusters,) or null
  const int32_t* wanted;  // on the device: 0 where nothing is to be done; or null
};

// Bytes of workspace, aligned to 16, that the launch needs.
int64_t cluster_means_bytes(const ClusterMeans& arguments);
void launch_cluster_means(const ClusterMeans& arguments, void* workspace, cudaStream_t stream);

}  // namespace dmlfast::cuda
