#include "contrast_triplet_forward.cuh"

namespace dmlfast::cuda {

namespace {

struct LossMemory {
  TripletMemory triplets;
  TripletPart* parts;

  static LossMemory take(Workspace& workspace, const TripletArguments& a) {
    LossMemory memory{};
    memory.triplets = TripletMemory::take(workspace, a);
    memory.parts = workspace.take<TripletPart>(
        int64_t{walk_split(a.x.rows, a.references.rows, a.wanted_items).items()} * kTileRows);
    return memory;
  }
};

// Joins the parts of the columns in their order. An anchor that is not finite has loss NaN, and
// counts as one triplet, so that a mean is NaN.
__global__ void join_triplets_kernel(PackedRows x, const int64_t* order, Split split,
                                     const TripletPart* parts, TripletResults results) {
  for (int position = blockIdx.x * blockDim.x + threadIdx.x; position < x.rows;
       position += gridDim.x * blockDim.x) {
    const int64_t anchor = order[position];
    const int64_t first = first_part_of(split, position);
    TripletPart sum{0.0, 0};
    for (int part = 0; part < split.parts; ++part) {
      sum.loss += parts[first + int64_t{part} * kTileRows].loss;
      sum.active += parts[first + int64_t{part} * kTileRows].active;
    }
    const bool is_lost = x.norm[position] == INFINITY;
    results.loss[anchor] = is_lost ? NAN : static_cast<float>(sum.loss);
    results.active[anchor] = is_lost ? 1 : sum.active;
  }
}

}  // namespace

int64_t triplet_workspace_bytes(const TripletArguments& a) {
  Workspace workspace;
  LossMemory::take(workspace, a);
  return workspace.bytes();
}

void launch_triplet(const TripletArguments& a, const TripletResults& results, void* memory_address,
                    int shared_bytes, cudaStream_t stream) {
  Workspace workspace(memory_address);
  const LossMemory memory = LossMemory::take(workspace, a);
  const TripletMemory& triplets = memory.triplets;
  const PackedPair pair = launch_triplet_preparation(a, triplets, shared_bytes, stream);
  WalkTask task = walk_of(pair.x, pair.y, a.wanted_items);
  for (int pass = 0; pass < triplet_passes(a); ++pass) {
    const TripletPolicyArguments arguments{
        triplet_distances(a, pair, triplets),
        triplets.ranges,
        launch_triplet_bounds(a, triplets, pass, nullptr, stream),
        {triplets.x_norms, triplets.y_norms, triplets.x_numbers, triplets.y_numbers,
         rounded_sums(a)}};
    task.queries.count = triplets.anchors + pass;
    if (is_split(a)) {
      const TripletLossPolicy<true> policy(arguments, memory.parts);
      launch_walk<TripletLossPolicy<true>, Precision::split>(task, policy, shared_bytes, stream);
    } else {
      const TripletLossPolicy<false> policy(arguments, memory.parts);
      launch_walk<TripletLossPolicy<false>, Precision::half>(task, policy, shared_bytes, stream);
    }
  }
  const Split split = split_of(pair.x.rows, kTileRows, pair.y.tiles(), task.queries.wanted_items);
  DMLFAST_LAUNCH(join_triplets_kernel, element_blocks(a.x.rows), kElementThreads, stream, pair.x,
                 a.order, split, memory.parts, results);
}

}  // namespace dmlfast::cuda
