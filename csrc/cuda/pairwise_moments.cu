// The operator pairwise_moments, and what its gradient has in common with it.
#include "pairwise_moments.cuh"

namespace dmlfast::cuda {

namespace {

struct MomentMemory {
  PairwiseMemory pairs;
  int32_t* self;
  int32_t* counts;
  MomentSums sums;

  static MomentMemory take(Workspace& workspace, const PairwiseRows& rows) {
    MomentMemory memory{};
    const int64_t sums =
        int64_t{walk_split(rows.x.rows, rows.references.rows, rows.wanted_items).items()} *
        kTileRows;
    memory.pairs = PairwiseMemory::take(workspace, rows);
    memory.self = workspace.take<int32_t>(rows.x.rows);
    memory.counts = workspace.take<int32_t>(3);
    memory.sums.first = workspace.take<double>(sums);
    memory.sums.second = workspace.take<double>(sums);
    return memory;
  }
};

__global__ void own_columns_kernel(const int64_t* self_index, bool within_batch, int64_t anchors,
                                   int64_t padded, int64_t references, int32_t* self) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < padded;
       i += int64_t{gridDim.x} * blockDim.x) {
    int64_t own = within_batch ? i : -1;
    if (i < anchors && self_index != nullptr) {
      own = self_index[i];
    }
    self[i] = i < anchors && own >= 0 && own < references ? static_cast<int32_t>(own) : -1;
  }
}

__global__ void clear_lost_kernel(LostPairs lost) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *lost.lost_references = 0;
    *lost.wanted_anchors = 0;
    *lost.lost_anchors = 0;
  }
  for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       lost.own != nullptr && j < lost.references; j += int64_t{gridDim.x} * blockDim.x) {
    lost.own[j] = 0;
    lost.own_lost[j] = 0;
  }
}

// Sums of integers: the same in any order.
__global__ void count_lost_kernel(LostPairs lost) {
  int references = 0;
  int wanted = 0;
  int anchors = 0;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t j = first; j < lost.references; j += step) {
    references += lost.y_norms[j] == INFINITY ? 1 : 0;
  }
  for (int64_t i = first; i < lost.anchors; i += step) {
    if (!lost.is_wanted(static_cast<int>(i))) {
      continue;
    }
    const int is_lost = lost.x_norms[i] == INFINITY ? 1 : 0;
    wanted += 1;
    anchors += is_lost;
    if (lost.own != nullptr && lost.self[i] >= 0) {
      atomicAdd(lost.own + lost.self[i], 1);
      atomicAdd(lost.own_lost + lost.self[i], is_lost);
    }
  }
  references = warp_sum(references);
  wanted = warp_sum(wanted);
  anchors = warp_sum(anchors);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(lost.lost_references, references);
    atomicAdd(lost.wanted_anchors, wanted);
    atomicAdd(lost.lost_anchors, anchors);
  }
}

// Adds up the parts in their order.
__global__ void join_moments_kernel(MomentSums sums, Split split, Metric metric,
                                    const PackScale* scale, LostPairs lost,
                                    MomentArguments results) {
  const double unit = moment_unit(metric, scale);
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < lost.anchors;
       i += int64_t{gridDim.x} * blockDim.x) {
    double first = 0.0;
    double second = 0.0;
    for (int part = 0; part < split.parts; ++part) {
      const int64_t at = first_part_of(split, static_cast<int>(i)) + int64_t{part} * kTileRows;
      first += sums.first[at];
      second += sums.second[at];
    }
    const bool is_lost = lost.has_anchor(static_cast<int>(i));
    results.first[i] = is_lost ? NAN : unit * first;
    results.second[i] = is_lost ? NAN : unit * unit * second;
  }
}

}  // namespace

void launch_own_columns(const PairwiseRows& rows, const int64_t* self_index, int64_t padded,
                        int32_t* self, cudaStream_t stream) {
  DMLFAST_LAUNCH(own_columns_kernel, element_blocks(padded), kElementThreads, stream, self_index,
                 rows.within_batch, rows.x.rows, padded, rows.references.rows, self);
}

void launch_count_lost(const LostPairs& lost, cudaStream_t stream) {
  const int64_t most = lost.anchors > lost.references ? lost.anchors : lost.references;
  DMLFAST_LAUNCH(clear_lost_kernel, element_blocks(most), kElementThreads, stream, lost);
  DMLFAST_LAUNCH(count_lost_kernel, element_blocks(most), kElementThreads, stream, lost);
}

int64_t pairwise_moments_bytes(const PairwiseRows& rows) {
  Workspace workspace;
  MomentMemory::take(workspace, rows);
  return workspace.bytes();
}

void launch_pairwise_moments(const PairwiseRows& rows, const MomentArguments& moments,
                             void* workspace, cudaStream_t stream) {
  Workspace memory_of(workspace);
  const MomentMemory memory = MomentMemory::take(memory_of, rows);
  PairwiseWalk pairs = launch_pairwise_pack(rows, memory.pairs, stream);
  pairs.distances.self = memory.self;
  const int64_t anchors = rows.x.rows;
  launch_own_columns(rows, moments.self_index, anchors, memory.self, stream);
  LostPairs lost{};
  lost.x_norms = pairs.walk.x.norm;
  lost.y_norms = pairs.walk.y.norm;
  lost.self = memory.self;
  lost.anchors = pairs.walk.x.rows;
  lost.references = pairs.walk.y.rows;
  lost.lost_references = memory.counts;
  lost.wanted_anchors = memory.counts + 1;
  lost.lost_anchors = memory.counts + 2;
  launch_count_lost(lost, stream);
  with_precision(is_split(rows), [&](auto precision) {
    launch_walk<MomentPolicy, decltype(precision)::value>(
        pairs.walk, MomentPolicy(pairs.distances, moments.centre, memory.sums), rows.shared_bytes,
        stream);
  });
  const Split split = walk_split(rows.x.rows, rows.references.rows, rows.wanted_items);
  DMLFAST_LAUNCH(join_moments_kernel, element_blocks(anchors), kElementThreads, stream, memory.sums,
                 split, rows.metric, pairs.distances.scale, lost, moments);
}

}  // namespace dmlfast::cuda
