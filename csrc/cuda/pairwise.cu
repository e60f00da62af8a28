#include "pairwise_distance.cuh"
#include "pairwise_walks.cuh"

namespace dmlfast::cuda {

namespace {

__global__ void identity_kernel(int64_t* order, int64_t rows) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    order[i] = i;
  }
}

}  // namespace

PairwiseWalk launch_pairwise_pack(const PairwiseRows& rows, const PairwiseMemory& memory,
                                  cudaStream_t stream) {
  const int64_t most = rows.x.rows > rows.references.rows ? rows.x.rows : rows.references.rows;
  DMLFAST_LAUNCH(identity_kernel, element_blocks(most), kElementThreads, stream, memory.order,
                 most);
  const PackedPair pair =
      as_multiplied(launch_pack_rows(rows.x, memory.order, rows.references, memory.order,
                                     rows.within_batch, rows.metric, memory.packed, stream),
                    is_split(rows));
  const DistanceTask distances{rows.metric,     pair.scale,   pair.x,       pair.y, rows.x,
                               rows.references, memory.order, memory.order, nullptr};
  return {walk_of(pair.x, pair.y, rows.wanted_items), distances};
}

int64_t pairwise_distance_bytes(const PairwiseRows& rows) {
  Workspace workspace;
  PairwiseMemory::take(workspace, rows);
  return workspace.bytes();
}

void launch_distance_walk(const PairwiseWalk& pairs, bool is_split, float* distance,
                          int shared_bytes, cudaStream_t stream) {
  with_precision(is_split, [&](auto precision) {
    launch_walk<StorePolicy, decltype(precision)::value>(
        pairs.walk, StorePolicy(pairs.distances, distance), shared_bytes, stream);
  });
}

void launch_pairwise_distance(const PairwiseRows& rows, float* distance, void* workspace,
                              cudaStream_t stream) {
  Workspace memory(workspace);
  const PairwiseWalk pairs = launch_pairwise_pack(rows, PairwiseMemory::take(memory, rows), stream);
  launch_distance_walk(pairs, is_split(rows), distance, rows.shared_bytes, stream);
}

}  // namespace dmlfast::cuda
