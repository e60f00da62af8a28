#include "pairwise_distance.cuh"
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

}  // namespace

int64_t pairwise_distance_bytes(const PairwiseRows& rows) {
  Workspace workspace;
  PairwiseMemory::take(workspace, rows);
  return workspace.bytes();
}

void launch_pairwise_distance(const PairwiseRows& rows, float* distance, void* workspace,
                              cudaStream_t stream) {
  Workspace memory(workspace);
  const PairwiseWalk pairs = launch_pairwise_pack(rows, PairwiseMemory::take(memory, rows), stream);
  with_precision(is_split(rows), [&](auto precision) {
    launch_walk<StorePolicy, decltype(precision)::value>(
        pairs.walk, StorePolicy(pairs.distances, distance), rows.shared_bytes, stream);
  });
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
  DMLFAST_LAUNCH(own_columns_kernel, element_blocks(anchors), kElementThreads, stream,
                 moments.self_index, rows.within_batch, anchors, anchors, rows.references.rows,
                 memory.self);
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
                 split.parts, rows.metric, pairs.distances.scale, lost, moments);
}

}  // namespace dmlfast::cuda
