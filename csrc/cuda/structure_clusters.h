// What the soft assignment of adaptive distances to clusters asks of a device.
#pragma once

#include "structure.h"

namespace dmlfast::cuda {

// Every distance D within a batch is shared among clusters, c_k = softmax over k of
// -sharpness |D - target_k|.
struct Clusters {
  const double* targets;  // (clusters,)
  int clusters;
  double sharpness;
  bool ordered;  // whether masses and moments are wanted
};

// Per anchor the sums of c_k |D - target_k|, (N,), and of c_k and c_k D, (N, clusters).
struct ClusterSums {
  double* loss;
  double* mass;
  double* moment;
};

// Upstream gradients of the sums.
struct ClusterUpstream {
  const double* loss;
  int64_t loss_stride;
  const double* mass;
  int64_t mass_strides[2];
  const double* moment;
  int64_t moment_strides[2];
};

// Each launch needs a workspace of as many bytes, aligned to 16. There are anchors.
int64_t structure_clusters_bytes(const StructureRows& rows, const Clusters& clusters);
void launch_structure_clusters(const StructureRows& rows, const Clusters& clusters,
                               const ClusterSums& sums, void* workspace, cudaStream_t stream);

int64_t structure_clusters_gradient_bytes(const StructureRows& rows, const Clusters& clusters);
void launch_structure_clusters_gradient(const StructureRows& rows, const Clusters& clusters,
                                        const ClusterUpstream& upstream,
                                        const StructureResults& results, void* workspace,
                                        cudaStream_t stream);

}  // namespace dmlfast::cuda
