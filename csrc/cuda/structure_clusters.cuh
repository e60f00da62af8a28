// How a distance is shared among clusters, and the anchors whose sums are lost.
#pragma once

#include "pairwise_moments.cuh"
#include "structure_clusters.h"
#include "structure_pairs.cuh"

namespace dmlfast::cuda {

constexpr float kLog2OfE = 1.4426950408889634f;

// The clusters as walks need them.
struct ClusterTask {
  DistanceTask distances;
  const float* targets;
  int clusters;
  float sharpness;
};

// Distances of a thread that are shared at once, the first of one of its rows. With gap_k = |D -
// target_k|, the least of them, and exponent_k = sharpness (gap_k - least) / log 2, the shares are
// 2^-exponent_k over their sum. What is summed is relative to the least: then nothing cancels that
// is large, and the sum is at least 1.
struct ClusterPart {
  static constexpr int kColumns = 8;

  const float (&distance)[Fragment::kColumns];
  float least[kColumns];

  __device__ ClusterPart(const ClusterTask& task, const float (&distances)[Fragment::kColumns])
      : distance(distances) {
    for_each([&](int j) { least[j] = INFINITY; });
#pragma unroll 1
    for (int k = 0; k < task.clusters; ++k) {
      const float target = task.targets[k];
      for_each([&](int j) { least[j] = fminf(least[j], fabsf(at(j) - target)); });
    }
  }

  __device__ float at(int j) const { return distance[j]; }

  // Beyond 128 the share is 0.
  __device__ float exponent(const ClusterTask& task, int j, float gap) const {
    return fminf(task.sharpness * kLog2OfE * (gap - least[j]), 128.0f);
  }

  template <class F>
  __device__ static void for_each(const F& f) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      f(j);
    }
  }
};

// Calls f(slot, first) for all parts of a tile, `first` being that of the thread's columns which is
// the part's first: the values go round, so that the part is always in the same registers, and what
// becomes of it, which is long, is compiled once for each row.
template <class F>
__device__ inline void for_each_part(Fragment& fragment, const F& f) {
  constexpr int kPart = ClusterPart::kColumns;
#pragma unroll 1
  for (int first = 0; first < Fragment::kColumns; first += kPart) {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      f(slot, first);
      float (&values)[Fragment::kColumns] = fragment.value[slot];
      float served[kPart];
      ClusterPart::for_each([&](int j) { served[j] = values[j]; });
#pragma unroll
      for (int j = 0; j + kPart < Fragment::kColumns; ++j) {
        values[j] = values[j + kPart];
      }
      ClusterPart::for_each([&](int j) { values[Fragment::kColumns - kPart + j] = served[j]; });
      // Keeps the compiler from having what it computes of both rows in registers at once.
      __syncwarp();
    }
  }
}

struct ClusterMemory {
  float* targets;
  int32_t* are_finite;  // the targets
  int32_t* self;
  float* partner_norms;  // +inf for a row that is lost as a partner
  int32_t* counts;

  static ClusterMemory take(Workspace& workspace, const StructureRows& rows,
                            const Clusters& clusters) {
    ClusterMemory memory{};
    memory.targets = workspace.take<float>(clusters.clusters);
    memory.are_finite = workspace.take<int32_t>(1);
    memory.self = workspace.take<int32_t>(rows.e.rows);
    memory.partner_norms = workspace.take<float>(rows.e.rows);
    memory.counts = workspace.take<int32_t>(3);
    return memory;
  }
};

// Of packed pairs, from which self is then left out; and what is lost, but for what is wanted.
struct ClusterWalk {
  PairwiseWalk pairs;
  ClusterTask task;
  LostPairs lost;
};

ClusterWalk launch_cluster_walk(const StructureRows& rows, const Clusters& clusters,
                                const StructureMemory& pairs, const ClusterMemory& memory,
                                cudaStream_t stream);

}  // namespace dmlfast::cuda
