// Means of clusters: rows are ordered by cluster, and the rows of a cluster are added up in
// ascending order, in sections of a fixed length, and these in their order.
#include "clusters_means.h"
#include "engine/any_rows.cuh"
#include "engine/group_order.cuh"
#include "engine/warp.cuh"

namespace dmlfast::cuda {

namespace {

constexpr int kSectionRows = 256;
constexpr int kLaneColumns = 4;
constexpr int kWarpColumns = 32 * kLaneColumns;

struct MeansMemory {
  GroupOrder order;
  int32_t* section_begin;  // (clusters + 1,)
  double* sums;            // (sections, columns)

  static MeansMemory take(Workspace& workspace, const ClusterMeans& a) {
    MeansMemory memory{};
    memory.order = GroupOrder::take(workspace, a.x.rows, a.clusters);
    memory.section_begin = workspace.take<int32_t>(a.clusters + 1);
    memory.sums = workspace.take<double>(most_sections(a) * a.x.columns);
    return memory;
  }

  static int64_t most_sections(const ClusterMeans& a) {
    return a.x.rows / kSectionRows + (a.clusters < a.x.rows ? a.clusters : a.x.rows);
  }
};

// What the kernels take: the order, and the sections of all clusters.
struct MeansTask {
  ClusterMeans means;
  const int32_t* order;
  const int32_t* begin;
  int32_t* section_begin;
  double* sums;

  __device__ bool is_wanted() const { return means.wanted == nullptr || *means.wanted > 0; }
  __device__ int rows(int64_t cluster) const { return begin[cluster + 1] - begin[cluster]; }
};

__global__ void count_sections_kernel(MeansTask task) {
  const int64_t clusters = task.is_wanted() ? task.means.clusters + 1 : 0;
  for (int64_t cluster = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; cluster < clusters;
       cluster += int64_t{gridDim.x} * blockDim.x) {
    const int rows = cluster < task.means.clusters ? task.rows(cluster) : 0;
    task.section_begin[cluster] = (rows + kSectionRows - 1) / kSectionRows;
    if (cluster < task.means.clusters && task.means.count != nullptr) {
      task.means.count[cluster] = rows;
    }
  }
}

// The last cluster that begins at or before a section: those without sections lie before it.
__device__ inline int64_t cluster_of(const MeansTask& task, int section) {
  int64_t low = 0;
  int64_t high = task.means.clusters;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (task.section_begin[middle] <= section) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Adds the rows at places [begin, end) of the order: columns k, k + 32, k + 64, k + 96 by lane.
template <class T>
__device__ __forceinline__ void add_rows(const Rows<T>& x, const int32_t* order, int begin, int end,
                                         int64_t k, double (&sums)[kLaneColumns]) {
  const int lane = lane_number();
  for (int first = begin; first < end; first += 32) {
    const int own = first + lane < end ? order[first + lane] : 0;
    const int count = min(32, end - first);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const int row = __shfl_sync(kAllLanes, own, i);
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        if (k + 32 * c < x.columns) {
          sums[c] += element(x, row, k + 32 * c);
        }
      }
    }
  }
}

// A warp for 128 columns of a section.
__global__ void __launch_bounds__(kElementThreads, 2) section_sums_kernel(MeansTask task) {
  const ClusterMeans& a = task.means;
  if (!task.is_wanted()) {
    return;
  }
  const int64_t groups = (a.x.columns + kWarpColumns - 1) / kWarpColumns;
  const int64_t items = task.section_begin[a.clusters] * groups;
  for (int64_t item = int64_t{blockIdx.x} * kElementWarps + warp_number(); item < items;
       item += int64_t{gridDim.x} * kElementWarps) {
    const int section = static_cast<int>(item / groups);
    const int64_t cluster = cluster_of(task, section);
    const int begin = task.begin[cluster] + (section - task.section_begin[cluster]) * kSectionRows;
    const int end = min(begin + kSectionRows, task.begin[cluster + 1]);
    const int64_t k = item % groups * kWarpColumns + lane_number();
    double sums[kLaneColumns] = {};
    with_rows(a.x, [&](const auto& x) { add_rows(x, task.order, begin, end, k, sums); });
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      if (k + 32 * c < a.x.columns) {
        task.sums[section * a.x.columns + k + 32 * c] = sums[c];
      }
    }
  }
}

// Adds a cluster's sections in their order; a thread a column.
__global__ void means_kernel(MeansTask task) {
  const ClusterMeans& a = task.means;
  const int64_t elements = task.is_wanted() ? a.clusters * a.x.columns : 0;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < elements;
       at += int64_t{gridDim.x} * blockDim.x) {
    const int64_t cluster = at / a.x.columns;
    const int64_t k = at % a.x.columns;
    const int rows = task.rows(cluster);
    if (rows == 0 && a.keeps_empty) {
      continue;
    }
    double sum = 0.0;
    for (int section = task.section_begin[cluster]; section < task.section_begin[cluster + 1];
         ++section) {
      sum += task.sums[section * a.x.columns + k];
    }
    store_element(a.means, cluster, k, rows == 0 ? 0.0 : sum / static_cast<double>(rows));
  }
}

}  // namespace

int64_t cluster_means_bytes(const ClusterMeans& a) {
  Workspace workspace;
  MeansMemory::take(workspace, a);
  return workspace.bytes();
}

void launch_cluster_means(const ClusterMeans& a, void* workspace_address, cudaStream_t stream) {
  if (a.clusters == 0) {
    return;
  }
  Workspace workspace(workspace_address);
  const MeansMemory memory = MeansMemory::take(workspace, a);
  launch_group_order(a.index, memory.order, a.wanted, stream);
  const MeansTask task{a, memory.order.order(), memory.order.begin, memory.section_begin,
                       memory.sums};
  DMLFAST_LAUNCH(count_sections_kernel, element_blocks(a.clusters + 1), kElementThreads, stream,
                 task);
  launch_exclusive_sums(memory.section_begin, a.clusters + 1, a.wanted, stream);
  const int64_t groups = (a.x.columns + kWarpColumns - 1) / kWarpColumns;
  DMLFAST_LAUNCH(section_sums_kernel, element_blocks(MeansMemory::most_sections(a) * groups * 32),
                 kElementThreads, stream, task);
  DMLFAST_LAUNCH(means_kernel, element_blocks(a.clusters * a.x.columns), kElementThreads, stream,
                 task);
}

}  // namespace dmlfast::cuda
