#include "contrast_triplet_gradient.cuh"

namespace dmlfast::cuda {

namespace {

GradientSums take_sums(Workspace& workspace, const TripletArguments& a, int64_t items) {
  return {workspace.take<float>(items * kTileRows * padded_columns(a.x.columns)),
          workspace.take<float>(items * kTileRows)};
}

struct GradientMemory {
  TripletMemory triplets;
  ClassRanges reference_ranges;  // by reference position, of its class among the anchors
  int32_t* hits;                 // [place][padded anchor position]
  float* upstream;               // by anchor position, up to whole tiles
  uint8_t* lost;                 // by anchor position
  GradientSums x;
  GradientSums references;

  static GradientMemory take(Workspace& workspace, const TripletArguments& a) {
    GradientMemory memory{};
    memory.triplets = TripletMemory::take(workspace, a);
    memory.reference_ranges.begin = workspace.take<int32_t>(a.references.rows);
    memory.reference_ranges.end = workspace.take<int32_t>(a.references.rows);
    memory.hits = workspace.take<int32_t>(bounds_of_pass(a) * padded_rows(a.x.rows));
    memory.upstream = workspace.take<float>(padded_rows(a.x.rows));
    memory.lost = workspace.take<uint8_t>(a.x.rows);
    const int wanted = wanted_gradient_items(a.x.columns, a.wanted_items);
    memory.x = take_sums(workspace, a, walk_split(a.x.rows, a.references.rows, wanted).items());
    memory.references =
        take_sums(workspace, a, walk_split(a.references.rows, a.x.rows, wanted).items());
    return memory;
  }
};

// Upstream gradients by position; none for anchors that are not finite, whose own gradient is NaN.
__global__ void upstream_kernel(PackedRows x, const int64_t* order, TripletGradients gradients,
                                GradientMemory memory) {
  const int padded = x.tiles() * kTileRows;
  for (int position = blockIdx.x * blockDim.x + threadIdx.x; position < padded;
       position += gridDim.x * blockDim.x) {
    if (position >= x.rows) {
      memory.upstream[position] = 0.0f;
      continue;
    }
    const float upstream = gradients.upstream[order[position] * gradients.upstream_stride];
    const bool is_finite = x.norm[position] != INFINITY;
    memory.upstream[position] = is_finite ? upstream : 0.0f;
    memory.lost[position] = !is_finite && upstream != 0.0f;
  }
}

template <class Bounds>
void launch_weights(const TripletArguments& a, const GradientTask& task,
                    const TripletWeightArguments& arguments, int shared_bytes,
                    cudaStream_t stream) {
  if (is_split(a)) {
    const TripletWeightPolicy<Bounds, true> policy(arguments);
    launch_gradient_walk<TripletWeightPolicy<Bounds, true>, Precision::split>(task, policy,
                                                                              shared_bytes, stream);
  } else {
    const TripletWeightPolicy<Bounds, false> policy(arguments);
    launch_gradient_walk<TripletWeightPolicy<Bounds, false>, Precision::half>(task, policy,
                                                                              shared_bytes, stream);
  }
}

void launch_hits(const TripletArguments& a, WalkTask task, const TripletPolicyArguments& arguments,
                 int32_t* hits, int shared_bytes, cudaStream_t stream) {
  if (is_split(a)) {
    const TripletHitsPolicy<true> policy(arguments, hits);
    launch_walk<TripletHitsPolicy<true>, Precision::split>(task, policy, shared_bytes, stream);
  } else {
    const TripletHitsPolicy<false> policy(arguments, hits);
    launch_walk<TripletHitsPolicy<false>, Precision::half>(task, policy, shared_bytes, stream);
  }
}

TripletExactness exchanged(const TripletExactness& exact) {
  return {exact.y_norms, exact.x_norms, exact.y_numbers, exact.x_numbers, exact.rounded_sums};
}

struct GradientTasks {
  GradientTask x;
  GradientTask references;
};

void launch_pass(const TripletArguments& a, const GradientMemory& memory, GradientTasks tasks,
                 int pass, int shared_bytes, cudaStream_t stream) {
  const TripletMemory& triplets = memory.triplets;
  const TripletExactness exact{triplets.x_norms, triplets.y_norms, triplets.x_numbers,
                               triplets.y_numbers, rounded_sums(a)};
  const TripletBounds bounds = launch_triplet_bounds(a, triplets, pass, memory.hits, stream);
  const DistanceTask& distances = tasks.x.distances;
  tasks.x.walk.queries.count = triplets.anchors + pass;
  tasks.references.walk.queries.count = triplets.references + pass;
  tasks.x.accumulates = pass > 0;
  tasks.references.accumulates = pass > 0;
  launch_hits(a, tasks.x.walk, {distances, triplets.ranges, bounds, exact}, memory.hits,
              shared_bytes, stream);
  launch_weights<RowBounds>(
      a, tasks.x,
      {distances, triplets.ranges, bounds, exact, memory.hits, memory.upstream, nullptr},
      shared_bytes, stream);
  launch_weights<ColumnBounds>(a, tasks.references,
                               {tasks.references.distances, memory.reference_ranges, bounds,
                                exchanged(exact), memory.hits, memory.upstream, distances.self},
                               shared_bytes, stream);
}

}  // namespace

int64_t triplet_gradient_workspace_bytes(const TripletArguments& a) {
  Workspace workspace;
  GradientMemory::take(workspace, a);
  return workspace.bytes();
}

void launch_triplet_gradient(const TripletArguments& a, const TripletGradients& gradients,
                             void* memory_address, int shared_bytes, cudaStream_t stream) {
  Workspace workspace(memory_address);
  const GradientMemory memory = GradientMemory::take(workspace, a);
  const PackedPair pair = launch_triplet_preparation(a, memory.triplets, shared_bytes, stream);
  launch_class_places(labels_of_references(a), labels_of_anchors(a), nullptr, nullptr,
                      {memory.reference_ranges, nullptr}, stream);
  DMLFAST_LAUNCH(upstream_kernel, element_blocks(padded_rows(a.x.rows)), kElementThreads, stream,
                 pair.x, a.order, gradients, memory);
  const DistanceTask distances = triplet_distances(a, pair, memory.triplets);
  GradientTasks tasks{};
  const int wanted = wanted_gradient_items(a.x.columns, a.wanted_items);
  tasks.x.walk = walk_of(pair.x, pair.y, wanted);
  tasks.x.distances = distances;
  tasks.x.sums = memory.x;
  tasks.references.walk = walk_of(pair.y, pair.x, wanted);
  tasks.references.distances = exchanged(distances);
  tasks.references.sums = memory.references;
  for (int pass = 0; pass < triplet_passes(a); ++pass) {
    launch_pass(a, memory, tasks, pass, shared_bytes, stream);
  }
  launch_gradient_rows({tasks.x, memory.lost, gradients.x}, stream);
  launch_gradient_rows({tasks.references, nullptr, gradients.references}, stream);
}

}  // namespace dmlfast::cuda
